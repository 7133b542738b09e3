"""The whole analysis: a model, a text, curves, the cut that they propose, and the record of it."""

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
from mmjax.runs.saved import hardware, versions
from mmjax.trajectory.knee import Knee, confidence, find_knees
from mmjax.trajectory.lens import Lens, Measure, divergences
from mmjax.trajectory.samples import Samples, read_samples
from mmjax.weights.load import open_pretrained

SCHEMA_VERSION = 1
_DIGITS = 6

type Told = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class AnalysisSettings:
    """What is asked.

    Attributes:
        weights: a path as `mmjax.fetch.resolved` takes it.
        text: the file of samples.
        count: samples that are read at most; longest: tokens of each at most.
        tokenizer: where it is, if not beside the weights.
    """

    weights: str
    text: Path
    measure: Measure = "positions"
    count: int = 100
    longest: int = 256
    dtype: Literal["float32", "bfloat16"] = "float32"
    tokenizer: str | None = None


def analyse(
    settings: AnalysisSettings, told: Told = lambda what, done, total: None
) -> dict[str, Any]:
    """Reads the samples with the model and returns the record, as trajectory.json has it.

    Args:
        told: called with what is being done, how much of it is done, and how much there is: bytes of weights, then samples.

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
        tokenizer = (
            find_tokenizer(path)
            if settings.tokenizer is None
            else named_tokenizer(resolved(settings.tokenizer))
        )
        sizes = {
            "count": settings.count,
            "longest": settings.longest,
            "vocabulary": config.decoder.vocabulary,
        }
        samples = read_samples(settings.text, tokenizer, **sizes)
        model_def, shapes = parameters.abstract(config)
        total = opened.nbytes
        params = opened.read(
            shapes,
            dtype=jnp.dtype(settings.dtype),
            progress=lambda done: told("reading weights", done, total),
        )
    lens = Lens(model_def, params, settings.measure, max(map(len, samples.tokens)))
    curves = _curves(lens, samples, told)
    return _record(settings, config, samples, curves) | {
        "seconds": round(time.monotonic() - begun, 1)
    }


def _curves(lens: Lens, samples: Samples, told: Told) -> np.ndarray:
    """Divergences [samples, layers]."""
    curves = []
    for number, tokens in enumerate(samples.tokens):
        told("reading samples", number, len(samples.tokens))
        curves.append(divergences(lens.read(tokens), lens.measure))
        if not np.isfinite(curves[-1]).all():
            raise InputError(
                f"What the model computes of sample {number + 1} is not finite. Its weights are damaged, or need --dtype=float32."
            )
    return np.stack(curves)


def _record(
    settings: AnalysisSettings, config: LanguageModelConfig, samples: Samples, curves: np.ndarray
) -> dict[str, Any]:
    median, quartiles = np.median(curves, axis=0), np.quantile(curves, (0.25, 0.75), axis=0)
    knee = find_knees(median[None])[0]
    shapes = parameters.abstract(config)[1]
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {
            "weights": settings.weights,
            "layers": curves.shape[1],
            "vocabulary": config.decoder.vocabulary,
            "parameters": parameters.count(shapes),
            "dtype": settings.dtype,
        },
        "text": {
            "file": str(settings.text),
            "samples": len(samples.tokens),
            "left_out": samples.left_out,
            "tokens": samples.total,
            "longest": max(map(len, samples.tokens)),
            "digest": samples.digest,
        },
        "measure": settings.measure,
        "layers": list(range(curves.shape[1])),
        "median": _rounded(median),
        "quartiles": [_rounded(quartile) for quartile in quartiles],
        "samples": [_rounded(curve) for curve in curves],
        "cut": None if knee is None else _cut(knee, config, curves.shape[1]),
        "confidence": None if knee is None else dataclasses.asdict(confidence(curves, knee)),
        "versions": versions(),
        "hardware": hardware(),
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), _DIGITS) for value in values]


def _cut(knee: Knee, config: LanguageModelConfig, layers: int) -> dict[str, Any]:
    """The proposal: the last layer is kept, and the first of those that are replaced stands for them all."""
    points = zip((0, knee.corner, layers - 1), knee.heights, strict=True)
    size, share = surrogate_size(config, knee.cut)
    return {
        "layer": knee.cut,
        "replaced_layers": [knee.cut, layers - 1],
        "fit": [[x, round(y, _DIGITS)] for x, y in points],
        "improvement": round(knee.improvement, _DIGITS),
        "surrogate": {"layers": knee.cut + 2, "parameters": size, "share": round(share, _DIGITS)},
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
