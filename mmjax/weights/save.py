"""Models in the form that published ones have: no low-rank updates, blocks in one stack, and the norm that their encoders end in.

Models as folders that transformers reads, with the same numbers.
"""

import dataclasses
import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from mmjax.base.files import atomic_directory
from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import (
    DecoderConfig,
    LanguageModelConfig,
    LoRAConfig,
    ModelConfig,
    VisionEncoderConfig,
    ViTConfig,
    VLMConfig,
)
from mmjax.models.vlm import VLM, LanguageModel, VisionEncoder
from mmjax.transitions.lora import is_lora, merged_kernel
from mmjax.transitions.surrogate import join
from mmjax.typing import Params
from mmjax.weights import vlm_checkpoint
from mmjax.weights.config_json import CONFIG, IMAGES, dumps
from mmjax.weights.families import FAMILIES, Family
from mmjax.weights.placing import cast_finite
from mmjax.weights.pretrained_protocol import Origin, Progress, TensorMapping, dtype_name
from mmjax.weights.rules import Rule, TensorSlice, count, pieces
from mmjax.weights.safetensors_writing import Tensor, write_safetensors
from mmjax.weights.tensors import TensorInfo, quoted


def writable(config: ModelConfig) -> ModelConfig:
    """The config of a model as it is written; it computes the same."""
    if isinstance(config, LanguageModelConfig):
        return dataclasses.replace(config, decoder=_one_stack(config.decoder))
    vision = dataclasses.replace(
        config.vision,
        separate_last_layers=0,
        final_norm=config.vision.final_norm or _lacks_norm(config),
    )
    if isinstance(config, VisionEncoderConfig):
        return dataclasses.replace(config, vision=vision)
    return dataclasses.replace(
        config, vision=vision, decoder=_one_stack(config.decoder), lora=LoRAConfig()
    )


def writable_params(params: Params, config: ModelConfig) -> Params:
    """The parameters for `writable(config)`: low-rank updates are merged into their kernels; a norm that is missing is of ones and zeros.

    Hidden states, which is what a connector reads, do not depend on that norm.
    """
    if isinstance(config, VLMConfig):
        params = _merged(
            params, config
        )  # before stacks are joined: some may have updates, and others none
    if not isinstance(config, VisionEncoderConfig):
        params = join(params, "decoder", config.decoder.layer_ranges)
    if isinstance(config, LanguageModelConfig):
        return params
    params = join(params, "vision", config.vision.layer_ranges)
    if _lacks_norm(config):
        width = config.vision.width
        params = params | {
            "vision/final_norm/scale": jnp.ones(width),
            "vision/final_norm/bias": jnp.zeros(width),
        }
    return params


def _one_stack(decoder: DecoderConfig) -> DecoderConfig:
    """A surrogate as a decoder of so many blocks."""
    return dataclasses.replace(decoder, layers=decoder.depth, replaced_layers=(), translators=1)


def _lacks_norm(config: VLMConfig | VisionEncoderConfig) -> bool:
    return config.vision.norm == "layer" and not config.vision.final_norm


def _merged(params: Params, config: VLMConfig) -> Params:
    modules = [path.removesuffix("/lora_a") for path in params if path.endswith("/lora_a")]
    rest = {path: value for path, value in params.items() if not is_lora(path)}
    for module in modules:
        kernel = f"{module}/kernel"
        rest[kernel] = merged_kernel(
            params[kernel],
            params[f"{module}/lora_a"],
            params[f"{module}/lora_b"],
            config.lora.alpha,
        )
    return rest


DTYPES = ("float32", "bfloat16", "float16")
"""What tensors can be written as."""
PARTS = (vlm_checkpoint.VISION, vlm_checkpoint.CONNECTOR, vlm_checkpoint.DECODER)
"""Folders of a VLM."""


def save_pretrained(
    module: LanguageModel | VisionEncoder | VLM,
    directory: Path | str,
    *,
    dtype: DTypeLike | None = None,
) -> None:
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
    save_params(
        params, module.config, Path(directory), origins=getattr(module, "origins", ()), dtype=dtype
    )


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
    with atomic_directory(directory) as draft:
        for folder, part, rules, settings in _parts(config, origins, kind):
            if folder and folder not in parts:
                continue
            _write(draft / folder, part, rules, settings, params, kind, progress)
        _write_images(draft, config, origins)


def copy_companions(source: Path, target: Path) -> list[str]:
    """Copies what stands beside weights and does not depend on them (tokenizer, chat template, generation and image settings).

    Returns the names of the files.
    """
    beside = (
        "tokenizer*",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.*",
        "merges.txt",
        "chat_template*",
    )
    settings = (
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "LICENSE*",
    )
    found = sorted(
        {
            path
            for pattern in (*beside, *settings)
            for path in source.glob(pattern)
            if path.is_file()
        }
    )
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
            yield vlm_checkpoint.VISION, config, *_published(config.vision, origins, dtype)
            yield vlm_checkpoint.DECODER, config, *_published(config.decoder, origins, dtype)
            yield (
                vlm_checkpoint.CONNECTOR,
                config,
                vlm_checkpoint.connector_rules(config),
                vlm_checkpoint.connector_json(config.connector),
            )


def saved_lines(config: ModelConfig, origins: Sequence[Origin], dtype: str) -> list[TensorMapping]:
    """What `save_params` puts where: a line for each rule; names of tensors begin with the folder that they are in."""
    config = writable(config)
    shapes = parameters.abstract(config)[1]
    found = []
    for folder, _, rules, _ in _parts(config, origins, np.dtype(jnp.dtype(dtype))):
        for rule in rules:
            first = pieces([rule], {rule.param_path: shapes[rule.param_path]})[0]
            part = f"{rule.part + 1} of {rule.parts}" if rule.parts > 1 else ""
            name = f"{folder}/{rule.checkpoint_name}" if folder else rule.checkpoint_name
            found.append(
                TensorMapping(
                    name,
                    count(rule, shapes[rule.param_path].shape),
                    first.shape,
                    dtype,
                    part,
                    rule.param_path,
                )
            )
    return found


def _published(
    config: DecoderConfig | ViTConfig, origins: Sequence[Origin], dtype: np.dtype[Any]
) -> tuple[list[Rule], dict[str, Any]]:
    part = "decoder" if isinstance(config, DecoderConfig) else "vision"
    origin = next((origin for origin in origins if origin.part == part), None)
    family = find_writer(config, origin)
    settings: dict[str, Any] = json.loads(origin.kept) if origin else {}
    settings |= family.write(config)
    settings |= {
        "architectures": [family.architecture],
        "model_type": family.model_types[0],
        "torch_dtype": dtype.name,
    }
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
    return next(
        (family for family in fitting if origin and family.name == origin.family), fitting[0]
    )


def _write(
    folder: Path,
    config: ModelConfig,
    rules: list[Rule],
    settings: dict[str, Any],
    params: Params,
    dtype: np.dtype[Any],
    progress: Progress,
) -> None:
    shapes = parameters.abstract(config)[1]
    wanted = {rule.param_path: shapes[rule.param_path] for rule in rules}
    tensors: dict[str, list[TensorSlice]] = {}
    for piece in pieces(rules, wanted):
        tensors.setdefault(piece.name, []).append(piece)
    write_safetensors(
        folder, [_tensor(name, found, params, dtype, progress) for name, found in tensors.items()]
    )
    (folder / CONFIG).write_text(dumps(settings), encoding="utf-8")


def _write_images(draft: Path, config: ModelConfig, origins: Sequence[Origin]) -> None:
    """How images are made for the encoder: without it, another mean and deviation than the family's would be lost."""
    if isinstance(config, LanguageModelConfig):
        return
    family = find_writer(
        config.vision,
        next((origin for origin in origins if origin.part == vlm_checkpoint.VISION), None),
    )
    assert family.images is not None
    folder = draft / vlm_checkpoint.VISION if isinstance(config, VLMConfig) else draft
    (folder / IMAGES).write_text(dumps(family.images(config.vision)), encoding="utf-8")


def _tensor(
    name: str,
    found: list[TensorSlice],
    params: Mapping[str, Any],
    dtype: np.dtype[Any],
    progress: Progress,
) -> Tensor:
    """A tensor that is made when its turn has come: of one of our arrays, or of several end to end."""
    found = sorted(found, key=lambda piece: piece.start)

    def make() -> np.ndarray:
        parts = [
            piece.layout.to_theirs(_on_host(params[piece.target], piece.index)) for piece in found
        ]
        value = cast_finite(
            np.asarray(parts[0] if len(parts) == 1 else np.concatenate(parts)),
            dtype,
            f"Tensor {quoted(name)}",
        )
        progress(value.nbytes)
        return value

    return name, TensorInfo(found[0].shape, dtype), make


def _on_host(value: Any, index: tuple[int, ...]) -> np.ndarray:
    """One layer or expert of a parameter. What is in the host's memory already is not copied."""
    shared = (
        getattr(value, "is_fully_addressable", False)
        and len(value.devices()) == 1
        and next(iter(value.devices())).platform == "cpu"
    )
    return np.asarray(np.asarray(value)[index] if shared else value[index])


def _dtype_of(params: Params) -> np.dtype[Any]:
    """The dtype of the matrices: vectors are float32 in any case."""
    kinds = {np.dtype(value.dtype) for value in params.values() if value.ndim >= 3} or {
        np.dtype(np.float32)
    }
    return np.dtype(np.float32) if len(kinds) > 1 else kinds.pop()
