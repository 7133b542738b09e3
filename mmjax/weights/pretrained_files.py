"""Published models by path: folders of transformers and GGUF files, checked whole before a number is read.

The way of a path: its tensors, its config.json (or the fields of the GGUF file), the family that reads it, the table of tensors, the check
that every tensor is there.
"""

import dataclasses
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding, SingleDeviceSharding

from mmjax.base.huggingface import image_processor_class, image_settings
from mmjax.errors import InputError
from mmjax.models.config import (
    DecoderConfig,
    LanguageModelConfig,
    ModelConfig,
    VisionEncoderConfig,
    ViTConfig,
    VLMConfig,
)
from mmjax.typing import Params
from mmjax.weights import foreign_layouts, gguf_names
from mmjax.weights.families.base import (
    CONFIG,
    ConfigJson,
    Family,
    FamilyPart,
    PartConfig,
    find_family,
    read_config,
)
from mmjax.weights.gguf import GGUFSource
from mmjax.weights.open import open_weights
from mmjax.weights.placing import place
from mmjax.weights.pretrained_protocol import (
    SHOWN,
    Cut,
    Origin,
    Pretrained,
    Progress,
    Shapes,
    TensorMapping,
    common_dtype,
    matrix_paths,
    shapes_of,
    stored,
)
from mmjax.weights.rules import Rule, TensorSlice, tensor_slices
from mmjax.weights.tensors import TensorSource, equal_matrices, quoted

# Settings that change no number that a model computes, but that tools want to find again.
KEPT = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "initializer_range",
    "initializer_factor",
    "attention_dropout",
    "projection_dim",
    "router_aux_loss_coef",
    "layerscale_value",
    "use_cache",
)


def open_pretrained_files(path: Path) -> "PretrainedFiles":
    """Opens a folder of transformers or a GGUF file.

    Raises:
        InputError: nothing usable is there, mmjax does not have the family, or tensors are missing, unexpected or misshapen.
    """
    folder = path if path.is_dir() else path.parent
    if path.suffix != ".gguf":  # such a file says all itself
        foreign_layouts.check_settings(folder)
    source = open_weights(path)
    try:
        config: PartConfig
        unused: set[str] = set()
        notes: tuple[str, ...] = ()
        if isinstance(source, GGUFSource):
            where = source.files[0]
            family, config = gguf_names.read(source)
            settings = ConfigJson(gguf_names.special_tokens(source), str(where))
            rules = gguf_names.rules(family, config)
            notes = gguf_names.notes(source)
            names = {name: name for name in source.tensors}
            unused |= {gguf_names.ROPE_FACTORS} & set(names)
        else:
            where = folder / CONFIG
            settings = read_config(folder)
            family, config = _read_config(settings, folder)
            names, unused = _spelled_names(source, family, settings)
            config, names, copies, notes = _settle_head(source, family, config, names)
            notes = (*notes, *settings.notes)
            unused |= copies
            rules = family.rules(config)
        model: ModelConfig
        match config:
            case DecoderConfig():
                model = LanguageModelConfig(config, compute_dtype="float32")
            case ViTConfig():
                model = VisionEncoderConfig(config, compute_dtype="float32")
            case VLMConfig():
                model = config
        group = TensorGroup(source, names, rules, shapes_of(model, where), frozenset(unused))
        group.check()
        origins = []
        for part in family.parts(settings) or (FamilyPart(family, "", settings),):
            own = part.settings.content.get("vision_config") or part.settings.content
            kept = {key: own[key] for key in KEPT if key in own}
            text = json.dumps(kept, sort_keys=True)
            origins.append(Origin(part.family.part, part.family.name, text))
        if isinstance(model, VLMConfig):
            origins += of_whole(settings, family.name, model)
        return PretrainedFiles(model, [group], origins, notes)
    except BaseException as error:
        source.close()
        told = isinstance(error, InputError) and foreign_layouts.told(source, folder)
        if told:
            raise told from None
        raise


def of_whole(settings: ConfigJson, family: str, model: VLMConfig) -> list[Origin]:
    """What a whole model says beside its parts, and tools want to find again: the id that stands for images, if the vocabulary has it."""
    token = next((key for key in ("image_token_id", "image_token_index") if key in settings), None)
    if token is None or not settings.number(token) < (model.decoder.vocabulary or 0):
        return []
    kept = {"image_token_index": settings.number(token)}
    return [Origin("connector", family, json.dumps(kept))]


def _read_config(settings: ConfigJson, folder: Path) -> tuple[Family, PartConfig]:
    """The family and the config that config.json names, with the mean and deviation of pixels of the folder's settings of images."""
    for part in (settings, *(settings.part(key) for key in ("text_config", "vision_config"))):
        for key in ("quantization_config", "compression_config"):
            if part.content.get(key) is not None:
                raise InputError(
                    f"{part.where}: {key} says that the weights are quantised, by a package of which mmjax knows nothing. It reads plain "
                    "float32, bfloat16 and float16, and quantised weights of GGUF files only."
                )
    family = find_family(settings)
    config = family.config(settings)
    if isinstance(config, DecoderConfig):
        return family, config
    vision = config.vision if isinstance(config, VLMConfig) else config
    vision = _normalised_as(folder, vision)
    if isinstance(config, VLMConfig):
        return family, dataclasses.replace(config, vision=vision)
    return family, vision


def _normalised_as(folder: Path, vision: ViTConfig) -> ViTConfig:
    """The encoder with the mean and deviation of pixels that a folder says, or that the image processor which it names has by itself."""
    found = image_settings(folder)
    if found is None:
        return vision
    file, content = found
    images = ConfigJson(content, str(file))
    own = image_processor_class(file, content)[1]
    factor = images.real("rescale_factor", getattr(own, "rescale_factor", 1 / 255))
    if not images.flag("do_rescale", True) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise InputError(f"{file}: pixels are not divided by 255, which mmjax always does.")
    if not images.flag("do_normalize", getattr(own, "do_normalize", True)):
        return dataclasses.replace(vision, image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    values: dict[str, Any] = {}
    for name in ("image_mean", "image_std"):
        default = tuple(getattr(own, name, None) or getattr(vision, name))
        one = content.get(name)  # of all channels
        if isinstance(one, int | float) and not isinstance(one, bool):
            values[name] = (images.real(name),) * 3
        else:
            values[name] = images.numbers(name, 3, default)
    return dataclasses.replace(vision, **values)


def _spelled_names(
    source: TensorSource, family: Family, settings: ConfigJson
) -> tuple[dict[str, str], set[str]]:
    """The names of all tensors, by those that the family's table has; and which of these are not part of the function.

    Raises InputError if two stand for one.
    """
    parts = (FamilyPart(family, "", settings), *family.parts(settings))
    names: dict[str, str] = {}
    unused: set[str] = set()
    for name in source.tensors:
        spelled, is_unused = name, False
        for part in parts:
            if not spelled.startswith(part.prefix):
                continue
            inner = spelled.removeprefix(part.prefix)
            for pattern, replacement in part.family.spellings:
                inner = re.sub(pattern, replacement, inner)
            spelled = part.prefix + inner
            is_unused |= any(fnmatchcase(inner, pattern) for pattern in part.family.unused)
        if spelled in names:
            raise InputError(
                f"{source.files[0]}: the tensors {quoted(names[spelled])} and {quoted(name)} are two spellings of {quoted(spelled)}; "
                "only one of them can be meant."
            )
        names[spelled] = name
        if is_unused:
            unused.add(spelled)
    return names, unused


def _settle_head(
    source: TensorSource, family: Family, config: PartConfig, names: dict[str, str]
) -> tuple[PartConfig, dict[str, str], set[str], tuple[str, ...]]:
    """Follows the files where a config says that the head is tied and there is a tensor for it, as transformers does: equal to the table of
    embeddings it is a copy, alone it is the table, and otherwise it is a head of its own.

    Returns config and names as the files mean them, the names of copies, and what a person should know.
    """
    decoder = config.decoder if isinstance(config, VLMConfig) else config
    if not isinstance(decoder, DecoderConfig) or not decoder.tie_word_embeddings:
        return config, names, set(), ()
    decoder = dataclasses.replace(decoder, tie_word_embeddings=False)
    untied = (
        dataclasses.replace(config, decoder=decoder) if isinstance(config, VLMConfig) else decoder
    )
    by_path = {rule.param_path: rule.checkpoint_name for rule in family.rules(untied)}
    table, head = by_path["decoder/embedding"], by_path["decoder/lm_head/kernel"]
    if head not in names:
        return config, names, set(), ()
    if table not in names:
        renamed = {table if name == head else name: actual for name, actual in names.items()}
        return config, renamed, set(), ()
    if equal_matrices(source, names[table], names[head]):
        return config, names, {head}, ()
    note = f"{head} differs from {table}: the head is taken from the file, though config.json says that the two are tied."
    return untied, names, set(), (note,)


@dataclasses.dataclass
class TensorGroup:
    """One source of tensors, and the parameters that are made from it.

    Attributes:
        names: of its tensors, by the names that the table has.
        rules: the table, for the parameters that the source has.
        shapes: of all parameters that the source has.
        unused: names (of the table) of tensors that no parameter is made from.
    """

    source: TensorSource
    names: dict[str, str]
    rules: list[Rule]
    shapes: dict[str, jax.ShapeDtypeStruct]
    unused: frozenset[str] = frozenset()

    def check(self) -> None:
        """Raises InputError with the list of what is missing, unexpected or misshapen."""
        first, *more = self.source.files
        where = f"{first}" + (f" (with {len(more)} more)" if more else "")
        wanted = sum(rule.count(self.shapes[rule.param_path].shape) for rule in self.rules)
        # Before they are listed, which a config that claims a thousand million layers would make a long work.
        if wanted > sum(rule.parts for rule in self.rules) * (len(self.names) + 1):
            raise InputError(
                f"{where} has {len(self.names)} tensors, but a model of its config has more than {wanted - 1:,} parts."
            )
        expected: dict[str, TensorSlice] = {}
        for found in tensor_slices(self.rules, self.shapes):
            expected.setdefault(found.name, found)
        missing, unexpected, misshapen = [], [], []
        for name, wish in expected.items():
            if name not in self.names:
                missing.append(f"missing: {name} {list(wish.shape)} for {wish.param_path}")
                continue
            info = self.source.tensors[self.names[name]]
            if info.shape != wish.shape:
                misshapen.append(
                    f"misshapen: {name} is {list(info.shape)} and should be {list(wish.shape)} for {wish.param_path}"
                )
            elif not jnp.issubdtype(info.dtype, jnp.floating):
                misshapen.append(
                    f"mistyped: {name} is {info.dtype} and should be floating-point for {wish.param_path}"
                )
        for name, actual in self.names.items():
            if name not in expected and name not in self.unused:
                shape = list(self.source.tensors[actual].shape)
                unexpected.append(f"unexpected: {quoted(actual)} {shape}")
        if missing or unexpected or misshapen:
            lines = []
            for problems in (missing, unexpected, misshapen):
                lines += problems[:SHOWN]
                if len(problems) > SHOWN:
                    lines.append(f"... and {len(problems) - SHOWN} more like the last")
            raise InputError(
                f"{where} does not hold the tensors of the model:\n"
                + "\n".join(f"  {line}" for line in lines)
            )

    @property
    def mappings(self) -> list[TensorMapping]:
        """One for each rule."""
        mappings = []
        for rule in self.rules:
            found = rule.slices(self.shapes[rule.param_path].shape)
            kinds = dict.fromkeys(self.source.stored_as(self.names[each.name]) for each in found)
            part = f"{rule.part + 1} of {rule.parts}" if rule.parts > 1 else ""
            mappings.append(
                TensorMapping(
                    rule.checkpoint_name,
                    len(found),
                    found[0].shape,
                    "/".join(kinds),
                    part,
                    rule.param_path,
                )
            )
        return mappings

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that parameters are made from, as they are read."""
        used = {self.names[found.name] for found in tensor_slices(self.rules, self.shapes)}
        return sum(self.source.tensors[name].nbytes for name in used)

    def dtypes(self, paths: Collection[str]) -> set[Any]:
        """The dtypes in which tensors of some parameters are read."""
        return {
            self.source.tensors[self.names[found.name]].dtype
            for rule in self.rules
            if rule.param_path in paths
            for found in rule.slices(self.shapes[rule.param_path].shape)
        }


class PretrainedFiles(Pretrained):
    """A `Pretrained` whose parameters are pieced together from one or several sources of tensors.

    Attributes:
        groups: the sources.
    """

    def __init__(
        self,
        config: ModelConfig,
        groups: Sequence[TensorGroup],
        origins: Iterable[Origin],
        notes: Iterable[str] = (),
    ):
        self.config, self.groups = config, tuple(groups)
        self.origins, self.notes = tuple(origins), tuple(notes)
        self.shapes = {path: shape for group in groups for path, shape in group.shapes.items()}

    def read(
        self,
        shapes: Shapes | None = None,
        shardings: Mapping[str, Sharding] | None = None,
        *,
        dtype: Any = jnp.float32,
        cuts: Mapping[str, Cut] = MappingProxyType({}),
        progress: Progress = lambda _: None,
    ) -> Params:
        wanted = stored(self.config, self.shapes if shapes is None else shapes, dtype, cuts)
        names = {path: cuts[path].path if path in cuts else path for path in wanted}
        first_layers = {path: cut.first for path, cut in cuts.items()}
        first_device = SingleDeviceSharding(jax.devices()[0])
        places = shardings or dict.fromkeys(wanted, first_device)
        params: Params = {}
        for group in self.groups:
            own = {path: shape for path, shape in wanted.items() if names[path] in group.shapes}
            rules = [
                dataclasses.replace(rule, param_path=path)
                for path in own
                for rule in group.rules
                if rule.param_path == names[path]
            ]
            slices = tensor_slices(rules, own, first_layers)
            params |= place(group.source, group.names, slices, own, places, progress)
        return params

    @property
    def dtype(self) -> str:
        matrices = matrix_paths(self.config, self.shapes)
        return common_dtype({dtype for group in self.groups for dtype in group.dtypes(matrices)})

    @property
    def nbytes(self) -> int:
        return sum(group.nbytes for group in self.groups)

    @property
    def mappings(self) -> list[TensorMapping]:
        return [mapping for group in self.groups for mapping in group.mappings]

    @property
    def unused(self) -> list[str]:
        return sorted(group.names[name] for group in self.groups for name in group.unused)

    def close(self) -> None:
        for group in self.groups:
            group.source.close()
