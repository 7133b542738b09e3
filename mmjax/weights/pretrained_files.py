"""Other people's models by path: folders of transformers and GGUF files, checked whole before a number is read."""

import dataclasses
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from mmjax.errors import InputError
from mmjax.models import check_model_config, parameters
from mmjax.models.config import (
    DecoderConfig,
    LanguageModelConfig,
    ModelConfig,
    VisionEncoderConfig,
    ViTConfig,
    VLMConfig,
)
from mmjax.typing import Params
from mmjax.weights.config_json import CONFIG, ConfigJson, read_config
from mmjax.weights.families import BY_MODEL_TYPE, Family, PartConfig, gguf, kept
from mmjax.weights.gguf import GGUFSource
from mmjax.weights.open import open_weights
from mmjax.weights.placing import Placer
from mmjax.weights.pretrained_protocol import (
    Cut,
    Origin,
    Pretrained,
    Progress,
    Shapes,
    TensorMapping,
    common_dtype,
    matrix_paths,
    stored,
)
from mmjax.weights.rules import Rule, TensorSlice, count, pieces
from mmjax.weights.tensors import TensorSource, quoted
from mmjax.weights.tied_embeddings import settle

SHOWN = 8
"""Tensors of one kind that a message lists."""


@dataclasses.dataclass
class TensorGroup:
    """One source of tensors, and what stands in it.

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
        wanted = sum(count(rule, self.shapes[rule.param_path].shape) for rule in self.rules)
        # Before they are listed, which a config that claims a thousand million layers would make a long work.
        if wanted > sum(rule.parts for rule in self.rules) * (len(self.names) + 1):
            raise InputError(
                f"{self.where} has {len(self.names)} tensors, but a model of its config has more than {wanted - 1:,} parts."
            )
        expected: dict[str, list[TensorSlice]] = {}
        for piece in pieces(self.rules, self.shapes):
            expected.setdefault(piece.name, []).append(piece)
        problems = [
            *self._missing(expected),
            *self._unexpected(expected),
            *self._misshapen(expected),
        ]
        if problems:
            raise InputError(
                f"{self.where} does not hold the tensors of the model:\n"
                + "\n".join(f"  {line}" for line in problems)
            )

    @property
    def where(self) -> str:
        """The files, for messages."""
        files = self.source.files
        return f"{files[0]}" + (f" (with {len(files) - 1} more)" if len(files) > 1 else "")

    @property
    def lines(self) -> list[TensorMapping]:
        """What stands where: a line for each rule."""
        return [self._line(rule) for rule in self.rules]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that parameters are made from, as they are read."""
        used = {self.names[piece.name] for piece in pieces(self.rules, self.shapes)}
        return sum(self.source.tensors[name].nbytes for name in used)

    def dtypes(self, paths: Collection[str]) -> set[Any]:
        """The dtypes in which tensors of some parameters are read."""
        found = pieces(
            [rule for rule in self.rules if rule.param_path in paths],
            {path: self.shapes[path] for path in self.shapes if path in paths},
        )
        return {self.source.tensors[self.names[piece.name]].dtype for piece in found}

    def _line(self, rule: Rule) -> TensorMapping:
        found = pieces([rule], {rule.param_path: self.shapes[rule.param_path]})
        kinds = dict.fromkeys(self._kind(self.names[piece.name]) for piece in found)
        part = f"{rule.part + 1} of {rule.parts}" if rule.parts > 1 else ""
        return TensorMapping(
            rule.checkpoint_name, len(found), found[0].shape, "/".join(kinds), part, rule.param_path
        )

    def _kind(self, name: str) -> str:
        return (
            self.source.kind_of(name)
            if isinstance(self.source, GGUFSource)
            else self.source.tensors[name].dtype.name
        )

    def _missing(self, expected: Mapping[str, Sequence[TensorSlice]]) -> list[str]:
        return _few(
            f"missing: {name} {list(found[0].shape)} for {found[0].target}"
            for name, found in expected.items()
            if name not in self.names
        )

    def _unexpected(self, expected: Mapping[str, object]) -> list[str]:
        extra = {
            name: actual
            for name, actual in self.names.items()
            if name not in expected and name not in self.unused
        }
        return _few(
            f"unexpected: {quoted(actual)} {list(self.source.tensors[actual].shape)}"
            for actual in extra.values()
        )

    def _misshapen(self, expected: Mapping[str, Sequence[TensorSlice]]) -> list[str]:
        def lines() -> Iterator[str]:
            for name, (piece, *_) in expected.items():
                found = self.source.tensors[self.names[name]] if name in self.names else None
                if found is not None and found.shape != piece.shape:
                    yield f"misshapen: {name} is {list(found.shape)} and should be {list(piece.shape)} for {piece.target}"
                elif found is not None and not jnp.issubdtype(found.dtype, jnp.floating):
                    yield f"mistyped: {name} is {found.dtype} and should be floating-point for {piece.target}"

        return _few(lines())


class Published(Pretrained):
    """A `Pretrained` whose parameters are pieced together from one or several sources of tensors.

    Attributes:
        parts: the sources.
    """

    def __init__(
        self,
        config: ModelConfig,
        parts: Sequence[TensorGroup],
        origins: Sequence[Origin],
        notes: Sequence[str] = (),
    ):
        self.config, self.parts, self.origins, self.notes = (
            config,
            tuple(parts),
            tuple(origins),
            tuple(notes),
        )
        self.shapes = {path: shape for part in parts for path, shape in part.shapes.items()}

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
        params: Params = {}
        for part in self.parts:
            own = {path: shape for path, shape in wanted.items() if names[path] in part.shapes}
            rules = [
                dataclasses.replace(rule, param_path=path)
                for path in own
                for rule in part.rules
                if rule.param_path == names[path]
            ]
            found = pieces(rules, own, {path: cut.first for path, cut in cuts.items()})
            params |= Placer(part.source, part.names, own, shardings, progress).place(found)
        return params

    @property
    def dtype(self) -> str:
        matrices = matrix_paths(self.config, self.shapes)
        return common_dtype({dtype for part in self.parts for dtype in part.dtypes(matrices)})

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def lines(self) -> list[TensorMapping]:
        return [line for part in self.parts for line in part.lines]

    @property
    def unused(self) -> list[str]:
        return sorted(part.names[name] for part in self.parts for name in part.unused)

    def close(self) -> None:
        for part in self.parts:
            part.source.close()


def open_published(path: Path) -> Published:
    """Opens a folder of transformers or a GGUF file.

    Raises:
        InputError: nothing usable is there, mmjax does not have the family, or tensors are missing, unexpected or misshapen.
    """
    source = open_weights(path)
    try:
        return _of_gguf(source) if isinstance(source, GGUFSource) else _of_folder(path, source)
    except BaseException:
        source.close()
        raise


def _of_folder(path: Path, source: TensorSource) -> Published:
    folder = path if path.is_dir() else path.parent
    settings = read_config(folder)
    _check_plain(settings)
    family = find_family(settings)
    config = family.read(settings)
    config, names, copies, notes = settle(source, family, config, spelt_names(source, family))
    unused = {name for name in names if family.is_unused(name)} | copies
    return _assemble(
        source, family, with_pixels(config, folder), names, unused, settings.content, notes=notes
    )


def spelt_names(source: TensorSource, family: Family) -> dict[str, str]:
    """The names of all tensors, by those that the family's table has. Raises InputError if two stand for one."""
    names: dict[str, str] = {}
    for name in source.tensors:
        spelt = family.spelt(name)
        if spelt in names:
            raise InputError(
                f"{source.files[0]}: the tensors {quoted(names[spelt])} and {quoted(name)} are two spellings of {quoted(spelt)}; "
                "only one of them can be meant."
            )
        names[spelt] = name
    return names


def with_pixels(config: PartConfig, folder: Path) -> PartConfig:
    """The config with the mean and deviation of pixels that the folder's preprocessor_config.json names, if it has one."""
    if isinstance(config, DecoderConfig) or not (folder / "preprocessor_config.json").exists():
        return config
    if isinstance(config, VLMConfig):
        vision = with_pixels(config.vision, folder)
        assert isinstance(vision, ViTConfig)
        return dataclasses.replace(config, vision=vision)
    settings = read_config(folder, "preprocessor_config.json")
    mean, deviation = (
        settings.numbers(f"image_{name}", 3, default)
        for name, default in (("mean", config.image_mean), ("std", config.image_std))
    )
    return dataclasses.replace(
        config,
        image_mean=(mean[0], mean[1], mean[2]),
        image_std=(deviation[0], deviation[1], deviation[2]),
    )


def _check_plain(settings: ConfigJson) -> None:
    """Refuses models whose tensors are not the numbers themselves but codes of some other package."""
    for part in (settings, *(settings.part(key) for key in ("text_config", "vision_config"))):
        for key in ("quantization_config", "compression_config"):
            if part.content.get(key) is not None:
                raise InputError(
                    f"{part.where}: {key} says that the weights are quantised, by a package of which mmjax knows nothing. It reads plain "
                    "float32, bfloat16 and float16, and quantised weights of GGUF files only."
                )


def find_family(settings: ConfigJson) -> Family:
    """The family that config.json names."""
    kind = settings.text("model_type", "")
    if kind not in BY_MODEL_TYPE:
        raise InputError(
            f"{settings.where}: model_type is {quoted(kind)}; mmjax knows {', '.join(sorted(BY_MODEL_TYPE))}."
        )
    return BY_MODEL_TYPE[kind]


def _of_gguf(source: GGUFSource) -> Published:
    family, config = gguf.read(source)
    names = {name: name for name in source.tensors}
    rules = gguf.rules(family, config, source)
    return _assemble(source, family, config, names, gguf.unused(names), gguf.tokens(source), rules)


def _assemble(
    source: TensorSource,
    family: Family,
    config: PartConfig,
    names: dict[str, str],
    unused: Iterable[str],
    settings: Mapping[str, Any],
    rules: list[Rule] | None = None,
    notes: Sequence[str] = (),
) -> Published:
    """The model of one source, checked."""
    model = standalone(config)
    where = source.files[0] if rules else source.files[0].parent / CONFIG
    shapes = shapes_of(model, where)
    part = TensorGroup(
        source, names, family.rules(config) if rules is None else rules, shapes, frozenset(unused)
    )
    part.check()
    return Published(model, [part], origins_of(config, family, settings), notes)


def _problems(model: ModelConfig) -> Iterator[str]:
    vision = None if isinstance(model, LanguageModelConfig) else model.vision
    decoder = None if isinstance(model, VisionEncoderConfig) else model.decoder
    for part in (vision, decoder):
        yield from () if part is None else check_model_config.problems(part)
    if isinstance(model, VLMConfig):
        yield from check_model_config.connector_problems(model.connector, model.vision, "connector")


def shapes_of(model: ModelConfig, where: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a model's parameters. Raises InputError, naming the file that the config comes from, if there can be no such model."""
    for problem in _problems(model):
        raise InputError(f"{where}: {problem}.")
    try:
        with np.errstate(all="ignore"):
            return parameters.abstract(model)[1]
    except (ValueError, TypeError, ArithmeticError, MemoryError, AssertionError) as error:
        reason = str(error).split("\n", 1)[0][:200]
        raise InputError(
            f"{where}: no model can be built from these settings: {reason or type(error).__name__}."
        ) from None


def standalone(config: PartConfig) -> ModelConfig:
    """The config of a module, from that of its only part."""
    match config:
        case DecoderConfig():
            return LanguageModelConfig(config, compute_dtype="float32")
        case ViTConfig():
            return VisionEncoderConfig(config, compute_dtype="float32")
        case _:
            return config


def origins_of(config: PartConfig, family: Family, settings: Mapping[str, Any]) -> list[Origin]:
    """What writing the model back will need."""
    if isinstance(config, VLMConfig):
        found = []
        for part, key in (("decoder", "text_config"), ("vision", "vision_config")):
            inner = settings.get(key) or {}
            kind = (
                inner.get("model_type") or {"decoder": "llama", "vision": "clip_vision_model"}[part]
            )
            found.append(
                Origin(part, BY_MODEL_TYPE[kind].name, json.dumps(kept(inner), sort_keys=True))
            )
        return found
    part = "decoder" if isinstance(config, DecoderConfig) else "vision"
    inner = settings.get("vision_config") or settings
    return [Origin(part, family.name, json.dumps(kept(inner), sort_keys=True))]


def _few(lines: Iterator[str]) -> list[str]:
    """The first lines, and how many more there are."""
    listed = list(lines)
    return (
        listed
        if len(listed) <= SHOWN
        else [*listed[:SHOWN], f"... and {len(listed) - SHOWN} more like the last"]
    )
