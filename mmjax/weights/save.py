"""Models as folders that transformers reads, with the same numbers."""

import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, LanguageModelConfig, ModelConfig, VisionEncoderConfig, ViTConfig, VLMConfig
from mmjax.models.standalone import LanguageModel, VisionEncoder
from mmjax.models.vlm import VLM
from mmjax.typing import Params
from mmjax.weights import whole
from mmjax.weights.config_json import CONFIG, PICTURES, dumps
from mmjax.weights.drafts import published_at
from mmjax.weights.families import FAMILIES, Family
from mmjax.weights.finite import cast_finite
from mmjax.weights.opened import Line, Origin, Progress, dtype_name
from mmjax.weights.rules import Piece, Rule, count, pieces
from mmjax.weights.tensors import TensorInfo, quoted
from mmjax.weights.writable import writable, writable_params
from mmjax.weights.writing import Tensor, write_safetensors

DTYPES = ("float32", "bfloat16", "float16")
"""What tensors can be written as."""
PARTS = (whole.VISION, whole.CONNECTOR, whole.DECODER)
"""Folders of a VLM."""


def save_pretrained(module: LanguageModel | VisionEncoder | VLM, directory: Path | str, *, dtype: DTypeLike | None = None) -> None:
    """Writes a model to a folder: a decoder or an encoder as transformers reads it, a VLM as three folders `vision`, `connector` and
    `decoder`. Low-rank updates are merged. The same model gives the same bytes.

    Args:
        module: a LanguageModel, VisionEncoder or VLM.
        dtype: of all tensors, "float32", "bfloat16" or "float16"; None: that of the module's matrices, which is the one that it was loaded
            in, not that of the folder it came from.

    Raises:
        InputError: no family of published models has the form of the model, the folder has files already, or a tensor has numbers that are
            not finite, or would not be in that dtype. Nothing is left behind.
        ValueError: there is no such dtype.
    """
    params = parameters.split(module)[1]
    save_params(params, module.config, Path(directory), origins=getattr(module, "origins", ()), dtype=dtype)


def save_params(
    params: Params,
    config: ModelConfig,
    directory: Path,
    *,
    origins: Sequence[Origin] = (),
    dtype: DTypeLike | None = None,
    parts: Collection[str] = PARTS,
    progress: Progress = lambda _: None,
) -> None:
    """As `save_pretrained`, of parameters by path.

    Args:
        parts: which of the three folders of a VLM are written; parameters of the others are not needed.
        progress: told the bytes that are being written.
    """
    params, config = writable_params(params, config), writable(config)
    kind = _dtype_of(params) if dtype is None else np.dtype(jnp.dtype(dtype_name(dtype, DTYPES)))
    with published_at(directory) as draft:
        for folder, part, rules, settings in _parts(config, origins, kind):
            if folder and folder not in parts:
                continue
            _write(draft / folder, part, rules, settings, params, kind, progress)
        _write_pictures(draft, config, origins)


def copy_companions(source: Path, target: Path) -> list[str]:
    """Copies what stands beside weights and does not depend on them (tokenizer, chat template, generation and picture settings).

    Returns the names of the files.
    """
    beside = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*")
    settings = ("generation_config.json", "preprocessor_config.json", "processor_config.json", "LICENSE*")
    found = sorted({path for pattern in (*beside, *settings) for path in source.glob(pattern) if path.is_file()})
    for path in found:
        shutil.copyfile(path, target / path.name)
    return [path.name for path in found]


def _parts(
    config: ModelConfig, origins: Sequence[Origin], dtype: np.dtype[Any]
) -> Iterator[tuple[str, ModelConfig, list[Rule], dict[str, Any]]]:
    """Folder, config, table and config.json of everything that will be written."""
    match config:
        case LanguageModelConfig():
            yield "", config, *_published(config.decoder, origins, dtype)
        case VisionEncoderConfig():
            yield "", config, *_published(config.vision, origins, dtype)
        case VLMConfig():
            yield whole.VISION, config, *_published(config.vision, origins, dtype)
            yield whole.DECODER, config, *_published(config.decoder, origins, dtype)
            yield whole.CONNECTOR, config, whole.connector_rules(config), whole.connector_json(config.connector)


def saved_lines(config: ModelConfig, origins: Sequence[Origin], dtype: str) -> list[Line]:
    """What `save_params` puts where: a line for each rule; names of tensors begin with the folder that they are in."""
    config = writable(config)
    shapes = parameters.abstract(config)[1]
    found = []
    for folder, _, rules, _ in _parts(config, origins, np.dtype(jnp.dtype(dtype))):
        for rule in rules:
            first = pieces([rule], {rule.ours: shapes[rule.ours]})[0]
            part = f"{rule.part + 1} of {rule.parts}" if rule.parts > 1 else ""
            name = f"{folder}/{rule.theirs}" if folder else rule.theirs
            found.append(Line(name, count(rule, shapes[rule.ours].shape), first.shape, dtype, part, rule.ours))
    return found


def _published(config: DecoderConfig | ViTConfig, origins: Sequence[Origin], dtype: np.dtype[Any]) -> tuple[list[Rule], dict[str, Any]]:
    part = "decoder" if isinstance(config, DecoderConfig) else "vision"
    origin = next((origin for origin in origins if origin.part == part), None)
    family = find_writer(config, origin)
    settings: dict[str, Any] = json.loads(origin.kept) if origin else {}
    settings |= family.write(config)
    settings |= {"architectures": [family.architecture], "model_type": family.model_types[0], "torch_dtype": dtype.name}
    return family.rules(config), settings


def find_writer(config: DecoderConfig | ViTConfig, origin: Origin | None = None) -> Family:
    """The family that a part is written as: the one that it came from if that still fits, or else the first that has its form.

    Raises:
        InputError: none has.
    """
    fitting = [family for family in FAMILIES if family.accepts(config)]
    if not fitting:
        known = ", ".join(family.name for family in FAMILIES)
        raise InputError(
            f"No family of published models has the form of this {type(config).__name__.removesuffix('Config')}, so transformers could not "
            f"read it. mmjax writes {known}."
        )
    return next((family for family in fitting if origin and family.name == origin.family), fitting[0])


def _write(
    folder: Path, config: ModelConfig, rules: list[Rule], settings: dict[str, Any], params: Params, dtype: np.dtype[Any], progress: Progress
) -> None:
    shapes = parameters.abstract(config)[1]
    wanted = {rule.ours: shapes[rule.ours] for rule in rules}
    tensors: dict[str, list[Piece]] = {}
    for piece in pieces(rules, wanted):
        tensors.setdefault(piece.name, []).append(piece)
    write_safetensors(folder, [_tensor(name, found, params, dtype, progress) for name, found in tensors.items()])
    (folder / CONFIG).write_text(dumps(settings), encoding="utf-8")


def _write_pictures(draft: Path, config: ModelConfig, origins: Sequence[Origin]) -> None:
    """How pictures are made for the encoder: without it, another mean and deviation than the family's would be lost."""
    if isinstance(config, LanguageModelConfig):
        return
    family = find_writer(config.vision, next((origin for origin in origins if origin.part == whole.VISION), None))
    assert family.pictures is not None
    folder = draft / whole.VISION if isinstance(config, VLMConfig) else draft
    (folder / PICTURES).write_text(dumps(family.pictures(config.vision)), encoding="utf-8")


def _tensor(name: str, found: list[Piece], params: Mapping[str, Any], dtype: np.dtype[Any], progress: Progress) -> Tensor:
    """A tensor that is made when its turn has come: of one of our arrays, or of several end to end."""
    found = sorted(found, key=lambda piece: piece.start)

    def make() -> np.ndarray:
        parts = [piece.layout.to_theirs(_on_host(params[piece.target], piece.index)) for piece in found]
        value = cast_finite(np.asarray(parts[0] if len(parts) == 1 else np.concatenate(parts)), dtype, f"Tensor {quoted(name)}")
        progress(value.nbytes)
        return value

    return name, TensorInfo(found[0].shape, dtype), make


def _on_host(value: Any, index: tuple[int, ...]) -> np.ndarray:
    """One layer or expert of a parameter. What is in the host's memory already is not copied."""
    shared = getattr(value, "is_fully_addressable", False) and len(value.devices()) == 1 and next(iter(value.devices())).platform == "cpu"
    return np.asarray(np.asarray(value)[index] if shared else value[index])


def _dtype_of(params: Params) -> np.dtype[Any]:
    """The dtype of the matrices: vectors are float32 in any case."""
    kinds = {np.dtype(value.dtype) for value in params.values() if value.ndim >= 3} or {np.dtype(np.float32)}
    return np.dtype(np.float32) if len(kinds) > 1 else kinds.pop()
