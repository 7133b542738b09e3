"""Models as folders that transformers reads, with the same numbers."""

import dataclasses
import json
import math
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
    ModelConfig,
    VisionEncoderConfig,
    ViTConfig,
    VLMConfig,
)
from mmjax.models.vlm import VLM, LanguageModel, VisionEncoder
from mmjax.typing import Params
from mmjax.weights.export_form import export_config, export_params
from mmjax.weights.families import llava
from mmjax.weights.families.base import CONFIG, IMAGES, PROCESSOR, Family, dumps, find_writer
from mmjax.weights.placing import is_finite
from mmjax.weights.pretrained_protocol import Origin, Progress, TensorMapping, dtype_name
from mmjax.weights.rules import Rule, TensorSlice, tensor_slices
from mmjax.weights.safetensors_writing import Tensor, write_safetensors
from mmjax.weights.tensors import TensorInfo, quoted
from mmjax.weights.vlm_checkpoint import (
    CONNECTOR,
    DECODER,
    PARTS,
    VISION,
    WHOLE,
    connector_json,
    connector_rules,
)

DTYPES = ("float32", "bfloat16", "float16")
"""What tensors can be written as."""


def save_pretrained(
    module: LanguageModel | VisionEncoder | VLM,
    directory: Path | str,
    *,
    dtype: DTypeLike | None = None,
) -> None:
    """Writes a model to a folder: a decoder or an encoder as transformers reads it, a VLM as three folders `vision`, `connector` and
    `decoder`, and as a fourth one, `llava`, for transformers' LlavaForConditionalGeneration where it has that form. Low-rank updates are
    merged. The same model gives the same bytes.

    Args:
        module: a LanguageModel, VisionEncoder or VLM.
        dtype: of all tensors, "float32", "bfloat16" or "float16"; None: that of the module's matrices, which is the one that it was loaded
            in, not that of the folder it came from.

    Raises:
        InputError: no family of published models has the form of the model, the folder has files already, or a tensor has numbers that are
            not finite, or would not be in that dtype. Nothing is written then.
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
    image_token: int | None = None,
    progress: Progress = lambda _: None,
) -> None:
    """As `save_pretrained`, of parameters by path.

    Args:
        parts: which of the three folders of a VLM are written; parameters of the others are not needed. The fourth needs all of them.
        image_token: the id that stands for images in the fourth; None: that of the model that the connector came from, or else one behind
            the vocabulary, for which the folder then has a row more.
        progress: told the bytes that are being written.
    """
    params, config = export_params(params, config), export_config(config)
    if dtype is None:  # that of the matrices: vectors are float32 in any case
        kinds = {np.dtype(value.dtype) for value in params.values() if value.ndim >= 3}
        kind = kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)
    else:
        kind = np.dtype(jnp.dtype(dtype_name(dtype, DTYPES)))
    with atomic_directory(directory) as draft:
        for folder in _folders(config, origins, kind, image_token):
            if folder.name and not {*_needed(folder)} <= {*parts}:
                continue
            given = _params_of(folder, params)
            tensors: dict[str, list[TensorSlice]] = {}
            shapes = parameters.abstract(folder.config)[1]
            own = {rule.param_path: shapes[rule.param_path] for rule in folder.rules}
            for found in tensor_slices(folder.rules, own):
                tensors.setdefault(found.name, []).append(found)
            target = draft / folder.name
            write_safetensors(
                target,
                [_tensor(name, found, given, kind, progress) for name, found in tensors.items()],
            )
            for name, settings in folder.settings.items():
                (target / name).write_text(dumps(settings), encoding="utf-8")


def saved_mappings(
    config: ModelConfig, origins: Sequence[Origin], dtype: str
) -> list[TensorMapping]:
    """Which tensors `save_params` writes parameters to, one for each rule; names of tensors begin with the folder that they are in. Of a
    VLM the three folders are meant."""
    config = export_config(config)
    shapes = parameters.abstract(config)[1]
    mappings = []
    for folder in _folders(config, origins, np.dtype(jnp.dtype(dtype))):
        if folder.name == WHOLE:
            continue
        for rule in folder.rules:
            shape = shapes[rule.param_path].shape
            part = f"{rule.part + 1} of {rule.parts}" if rule.parts > 1 else ""
            name = f"{folder.name}/{rule.checkpoint_name}" if folder.name else rule.checkpoint_name
            first = rule.slices(shape)[0].shape
            mappings.append(
                TensorMapping(name, rule.count(shape), first, dtype, part, rule.param_path)
            )
    return mappings


@dataclasses.dataclass(frozen=True)
class _Folder:
    """A folder that will be written.

    Attributes:
        name: "" for the one that holds a decoder or an encoder alone.
        rules: the table of its tensors.
        settings: its JSON files by name.
        config: of the model that the table is of.
    """

    name: str
    rules: list[Rule]
    settings: Mapping[str, dict[str, Any]]
    config: ModelConfig


def has_whole(config: ModelConfig) -> bool:
    """Whether `save_params` writes a model as one folder beside its parts, too."""
    config = export_config(config)
    return isinstance(config, VLMConfig) and llava.accepts(config)


def _needed(folder: _Folder) -> tuple[str, ...]:
    return PARTS if folder.name == WHOLE else (folder.name,)


def _params_of(folder: _Folder, params: Params) -> Params:
    if folder.name != WHOLE:
        return params
    assert isinstance(folder.config, VLMConfig) and folder.config.decoder.vocabulary is not None
    return llava.with_rows(params, folder.config.decoder.vocabulary)


def _folders(
    config: ModelConfig,
    origins: Sequence[Origin],
    dtype: np.dtype[Any],
    image_token: int | None = None,
) -> Iterator[_Folder]:
    """Everything that will be written of a model. Raises InputError if no family has the form of a part."""

    def described(family: Family) -> dict[str, Any]:
        return {
            "architectures": [family.architecture],
            "model_type": family.model_types[0],
            "torch_dtype": dtype.name,
        }

    def of_part(name: str, part: DecoderConfig | ViTConfig) -> _Folder:
        kind = DECODER if isinstance(part, DecoderConfig) else VISION
        origin = next((origin for origin in origins if origin.part == kind), None)
        family = find_writer(part, origin.family if origin else "")
        assert family.write is not None
        settings: dict[str, Any] = json.loads(origin.kept) if origin else {}
        settings |= family.write(part) | described(family)
        files = {CONFIG: settings}
        if isinstance(part, ViTConfig):
            # Without it, another mean and deviation of pixels than the family's would be lost.
            assert family.images is not None
            files[IMAGES] = family.images(part)
        return _Folder(name, family.rules(part), files, config)

    def whole(config: VLMConfig, kept: Mapping[str, Any]) -> _Folder:
        token = kept.get("image_token_index", config.decoder.vocabulary)
        token = token if image_token is None else image_token
        config = llava.with_image_token(config, token)
        vision, decoder = (of_part("", part).settings for part in (config.vision, config.decoder))
        settings = llava.write(config) | described(llava.FAMILY) | {"image_token_index": token}
        parts = {"vision_config": vision[CONFIG], "text_config": decoder[CONFIG]}
        files = {CONFIG: settings | parts, IMAGES: vision[IMAGES]}
        files[PROCESSOR] = llava.processor_settings(config)
        return _Folder(WHOLE, llava.rules(config), files, config)

    match config:
        case LanguageModelConfig():
            yield of_part("", config.decoder)
        case VisionEncoderConfig():
            yield of_part("", config.vision)
        case VLMConfig():
            yield of_part(VISION, config.vision)
            yield of_part(DECODER, config.decoder)
            kept: dict[str, Any] = {}
            for origin in origins:
                if origin.part == CONNECTOR:
                    kept = json.loads(origin.kept)
            settings = connector_json(config.connector, kept)
            yield _Folder(CONNECTOR, connector_rules(config), {CONFIG: settings}, config)
            if llava.accepts(config):
                yield whole(config, kept)


def _tensor(
    name: str, slices: list[TensorSlice], params: Params, dtype: np.dtype[Any], progress: Progress
) -> Tensor:
    """A tensor that is made when it is written, of one parameter or of several end to end. Making it raises InputError if it has numbers
    that are not finite, or would have them in the dtype."""
    slices = sorted(slices, key=lambda found: found.start)

    def make() -> np.ndarray:
        arrays = []
        for found in slices:
            value: Any = params[found.param_path]
            # What is in the host's memory already is not copied.
            shared = (
                getattr(value, "is_fully_addressable", False)
                and len(value.devices()) == 1
                and next(iter(value.devices())).platform == "cpu"
            )
            value = np.asarray(np.asarray(value)[found.index] if shared else value[found.index])
            arrays.append(found.layout.to_checkpoint(value))
        whole = np.asarray(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
        with np.errstate(over="ignore"):
            result = whole.astype(dtype, copy=False)
        if not is_finite(result):
            largest = float(np.abs(whole.astype(np.float32, copy=False)).max(initial=0.0))
            if math.isfinite(largest):
                raise InputError(
                    f"Tensor {quoted(name)} cannot be written as {dtype.name}: its largest number, {largest:g}, would be infinite."
                )
            raise InputError(
                f"Tensor {quoted(name)} has numbers that are not finite (NaN or infinite), and is not written."
            )
        progress(result.nbytes)
        return result

    return name, TensorInfo(slices[0].shape, dtype), make
