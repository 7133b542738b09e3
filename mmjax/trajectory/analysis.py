"""The analysis of a model on a text: a curve for each sample, the cut that they propose, and the record of it."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from mmjax.chat.hf_assets import find_tokenizer, named_tokenizer
from mmjax.errors import InputError
from mmjax.fetch.downloads import resolved
from mmjax.models import parameters
from mmjax.models.config import LanguageModelConfig, VisionEncoderConfig
from mmjax.runs.environment import hardware, versions
from mmjax.trajectory.knee import confidence, find_knees
from mmjax.trajectory.lens import Lens, Measure, divergences
from mmjax.trajectory.samples import Samples, read_samples
from mmjax.weights.load import open_pretrained

SCHEMA_VERSION = 1
_DIGITS = 6

type Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclasses.dataclass(frozen=True)
class AnalysisSettings:
    """What is analysed, and how.

    Attributes:
        weights: a path as `fetch.downloads.resolved` takes it.
        text: the file of samples.
        samples: so many at most; length: tokens of each at most.
        tokenizer: where it is, if not beside the weights.
    """

    weights: str
    text: Path
    measure: Measure = "positions"
    samples: int = 100
    length: int = 256
    dtype: Literal["float32", "bfloat16"] = "float32"
    tokenizer: str | None = None


def analyse(
    settings: AnalysisSettings, progress: Progress = lambda what, done, total: None
) -> dict[str, Any]:
    """Reads the samples with the model and returns the record, as trajectory.json has it.

    Args:
        progress: is told of bytes of weights, then of samples.

    Raises:
        InputError: the model, its tokenizer or the text cannot be used.
    """
    begun, path = time.monotonic(), resolved(settings.weights)
    with open_pretrained(path) as opened:
        if isinstance(opened.config, VisionEncoderConfig):
            raise InputError(
                f"{path} is a vision encoder alone, which predicts no tokens. A decoder or a whole model is needed."
            )
        config = LanguageModelConfig(opened.config.decoder, compute_dtype=settings.dtype)
        if settings.tokenizer is None:
            tokenizer = find_tokenizer(path)
        else:
            tokenizer = named_tokenizer(resolved(settings.tokenizer, weights=False))
        vocabulary = config.decoder.vocabulary
        assert vocabulary is not None, "that of published weights is known"
        samples = read_samples(
            settings.text,
            tokenizer,
            count=settings.samples,
            longest=settings.length,
            vocabulary=vocabulary,
        )
        model_def, shapes = parameters.abstract(config)
        total = opened.nbytes
        params = opened.read(
            shapes,
            dtype=jnp.dtype(settings.dtype),
            progress=lambda done: progress("reading weights", done, total),
        )
    lens = Lens(model_def, params, settings.measure, max(map(len, samples.tokens)))
    curves = []
    for number, tokens in enumerate(samples.tokens):
        progress("reading samples", number, len(samples.tokens))
        curves.append(divergences(lens.read(tokens), lens.measure))
        if not np.isfinite(curves[-1]).all():
            raise InputError(
                f"What the model computes of sample {number + 1} is not finite. Its weights are damaged, or need --dtype=float32."
            )
    return _record(settings, config, samples, np.stack(curves)) | {
        "seconds": round(time.monotonic() - begun, 1)
    }


def _record(
    settings: AnalysisSettings, config: LanguageModelConfig, samples: Samples, curves: np.ndarray
) -> dict[str, Any]:
    """What trajectory.json holds of curves [samples, layers]."""

    def rounded(values: np.ndarray) -> list[float]:
        return [round(float(value), _DIGITS) for value in values]

    median, quartiles = np.median(curves, axis=0), np.quantile(curves, (0.25, 0.75), axis=0)
    layers = curves.shape[1]
    knee, cut = find_knees(median[None])[0], None
    if knee is not None:
        size, share = surrogate_size(config, knee.cut)
        points = zip((0, knee.layer, layers - 1), knee.heights, strict=True)
        # The last layer is kept, and the first of those that are replaced stands for them all.
        cut = {
            "layer": knee.cut,
            "replaced_layers": [knee.cut, layers - 1],
            "fit": [[x, round(y, _DIGITS)] for x, y in points],
            "improvement": round(knee.improvement, _DIGITS),
            "surrogate": {
                "layers": knee.cut + 2,
                "parameters": size,
                "share": round(share, _DIGITS),
            },
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {
            "weights": settings.weights,
            "layers": layers,
            "vocabulary": config.decoder.vocabulary,
            "parameters": parameters.count(parameters.abstract(config)[1]),
            "dtype": settings.dtype,
        },
        "text": {
            "file": str(settings.text),
            "samples": len(samples.tokens),
            "skipped": samples.skipped,
            "tokens": samples.total,
            "longest": max(map(len, samples.tokens)),
            "digest": samples.digest,
        },
        "measure": settings.measure,
        "layers": list(range(layers)),
        "median": rounded(median),
        "quartiles": [rounded(quartile) for quartile in quartiles],
        "samples": [rounded(curve) for curve in curves],
        "cut": cut,
        "confidence": None if knee is None else dataclasses.asdict(confidence(curves, knee)),
        "versions": versions(),
        "hardware": hardware(),
    }


def surrogate_size(config: LanguageModelConfig, cut: int) -> tuple[int, float]:
    """Parameters of a decoder whose layers from `cut` to the last but one are one layer, and their share of the whole decoder's."""
    whole = dataclasses.replace(config.decoder, layers=config.decoder.depth, replaced_layers=())
    surrogate = dataclasses.replace(whole, replaced_layers=((cut, whole.layers - 1),))
    size, total = (
        parameters.count(parameters.abstract(LanguageModelConfig(decoder))[1])
        for decoder in (surrogate, whole)
    )
    return size, size / total
