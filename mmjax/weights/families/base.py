"""What a family of published models is: its config.json, read strictly, and its table of tensors, both ways."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from mmjax.base.files import read_object
from mmjax.base.huggingface import transformers
from mmjax.base.registry import modules_of
from mmjax.errors import InputError
from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.weights.config_keys import COMMON, ConfigKeys, read_by_transformers
from mmjax.weights.rules import Rule
from mmjax.weights.tensors import quoted

CONFIG = "config.json"
IMAGES = "preprocessor_config.json"
PROCESSOR = "processor_config.json"

# What a checkpoint holds: one part of a model, or a whole one.
type PartConfig = DecoderConfig | ViTConfig | VLMConfig

_LARGEST_NUMBER = 1e30  # not one that overflows float32 when something is done with it
_SHOWN = 8  # settings that a note lists
_MISSING = object()


@functools.cache
def class_defaults(model_type: str) -> Mapping[str, Any]:
    """What transformers takes for settings that a config.json of this model_type omits; nothing if it has no class for it.

    The class is not asked to read the file: some make lists as long as the file says that a model is deep.
    """
    classes = transformers().CONFIG_MAPPING
    if model_type not in classes:
        return {}
    own = classes[model_type]
    fields = {"rope_theta": own.default_theta} | own.default_config_fields()
    return {name: value for name, value in fields.items() if not callable(value)}


class ConfigJson:
    """A JSON object whose settings are asked for with the type that they must have; every error names the file and the setting.

    Attributes:
        content, where: the object, and the file that it comes from.
        model_type: whose defaults stand for what the object omits, or "".
        notes: what a person should know of the file; objects within it have the same list.
        asked: the settings that were asked for so far.
    """

    def __init__(
        self,
        content: Mapping[str, Any],
        where: str,
        model_type: str = "",
        notes: list[str] | None = None,
    ):
        self.content, self.where, self.model_type = content, where, model_type
        self.notes: list[str] = [] if notes is None else notes
        self.asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return self.content.get(key) is not None

    def setting(self, key: str, default: Any = _MISSING) -> Any:
        """A setting of any type; `default` where it is null, or is omitted and transformers has no default for it."""
        self.asked.add(key)
        value, omitted = self.content.get(key), key not in self.content
        if omitted and self.model_type:
            value = class_defaults(self.model_type).get(key)
        if value is None and default is not _MISSING:
            return default
        if value is None and omitted:
            raise InputError(f"{self.where}: {key} is missing.")
        return value

    def number(self, key: str, default: Any = _MISSING) -> int:
        """A whole number that is not negative."""
        value = self.setting(key, default)
        if value is not default and (
            not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**40
        ):
            raise self.wrong(key, value, "a whole number")
        return value

    def real(self, key: str, default: Any = _MISSING) -> float:
        """A finite number."""
        value = self.setting(key, default)
        if value is not default and not _is_real(value):
            raise self.wrong(key, value, "a number")
        return value if value is default else float(value)

    def flag(self, key: str, default: Any = _MISSING) -> bool:
        """True or false."""
        value = self.setting(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: Any = _MISSING) -> str:
        """A text."""
        value = self.setting(key, default)
        if value is not default and not isinstance(value, str):
            raise self.wrong(key, value, "a text")
        return value

    def numbers(self, key: str, count: int, default: Any = _MISSING) -> tuple[float, ...]:
        """So many numbers."""
        value = self.setting(key, default)
        if value is default:
            return value
        if not isinstance(value, list) or len(value) != count or not all(map(_is_real, value)):
            raise self.wrong(key, value, f"a list of {count} numbers")
        return tuple(map(float, value))

    def part(self, key: str, model_type: str = "") -> "ConfigJson":
        """A JSON object within; empty if it is absent."""
        self.asked.add(key)
        value = self.content.get(key) or {}
        if not isinstance(value, Mapping):
            raise self.wrong(key, value, "an object")
        return ConfigJson(value, f"{self.where}, {key}", model_type, self.notes)

    def choice[T](self, key: str, choices: Mapping[str, T], default: Any = _MISSING) -> T:
        """The value that one of the possible texts stands for."""
        value = self.text(key, default)
        if value not in choices:
            raise InputError(
                f"{self.where}: {key} is {_shown(value)}; mmjax knows {', '.join(choices)}."
            )
        return choices[value]

    def must_be(self, key: str, *allowed: Any) -> None:
        """Refuses settings that would change the function in a way that mmjax does not have. An absent one is the first of `allowed`."""
        self.asked.add(key)
        value = self.content.get(key, allowed[0])
        if value not in allowed:
            raise InputError(
                f"{self.where}: {key} is {_shown(value)}; mmjax has {' or '.join(map(_shown, allowed))} only."
            )

    def check_keys(self, keys: ConfigKeys, read: Callable[[], Collection[str]]) -> None:
        """Notes the settings that are neither listed nor were asked for. Raises InputError if one is among those that transformers' code of
        the model reads."""
        unknown = sorted(self.content.keys() - keys.names - self.asked)
        for key in unknown:
            if key in read():
                raise InputError(
                    f"{self.where}: mmjax does not know the setting {quoted(key)}, and transformers' code of such a model reads it."
                )
        if unknown:
            shown = ", ".join(map(quoted, unknown[:_SHOWN]))
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            self.notes.append(
                f"{self.where} has settings that neither mmjax nor transformers' code of such a model reads: {shown}{more}."
            )

    def wrong(self, key: str, value: Any, expected: str) -> InputError:
        """The error for a value that cannot be."""
        return InputError(f"{self.where}: {key} is {_shown(value)}; it must be {expected}.")


def read_config(folder: Path, name: str = CONFIG) -> ConfigJson:
    """The config.json of a folder. Raises InputError if it is missing, damaged or no JSON object."""
    path = folder / name
    if not os.path.lexists(path):
        raise InputError(f"{folder} has no {name}, which says what model the weights belong to.")
    return ConfigJson(read_object(path), str(path))


def dumps(content: dict[str, Any]) -> str:
    """JSON as mmjax writes every config.json: the same bytes for the same settings."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _is_real(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < _LARGEST_NUMBER
    )


def _shown(value: Any) -> str:
    """A value as JSON of at most 80 characters: those of GGUF files may be lists and texts of any length."""

    def shortened(value: Any) -> Any:
        if isinstance(value, list):
            return [shortened(item) for item in value[:81]]
        return value[:81] if isinstance(value, str) else value

    text = json.dumps(shortened(value), default=str)
    return text if len(text) <= 80 else text[:80] + "..."


@dataclasses.dataclass(frozen=True)
class GGUFForm:
    """How models of a family lie in GGUF files.

    Attributes:
        architecture: the value of "general.architecture".
        interleaved: whether queries and keys rotate neighbours instead of halves.
        optional_biases: whether queries, keys and values have biases where the file has tensors for them, and not where config.json would
            say so.
        applies: where several families have one architecture: whether a model is of this one, by its settings under the names of
            config.json.
    """

    architecture: str
    interleaved: bool = False
    optional_biases: bool = False
    applies: Callable[[Mapping[str, Any]], bool] = lambda settings: True


@dataclasses.dataclass(frozen=True)
class Family:
    """One family of models. Each file of this folder has one, as FAMILY.

    Attributes:
        name: as people say it.
        model_types: values of `model_type` in config.json; the first is the one that is written, and of which the defaults are.
        architecture: the class of transformers that reads what is written.
        part: which part of a model it is, or "model" for a whole one.
        read: config.json to a config of mmjax; `config` calls it. Raises InputError for what mmjax cannot do.
        rules: the table of tensors of a model.
        write: a config to the settings of config.json, beside `model_type` and `architectures`; None: it is read only.
        accepts: whether a model of a config can be written as this family.
        priority: where several families accept a model that came from none of them, the one with the highest is written; there must be
            no two.
        spellings: patterns and replacements that turn other names of the same tensors into those of the table.
        unused: globs of tensors that are not part of the function: other towers, tables that are computed.
        images: of an encoder: a config to a preprocessor_config.json.
        gguf: of a decoder that llama.cpp has too.
        parts: of a whole model: its parts, by the settings of its config.json.
        keys: what becomes of each setting, by model_type; those of the first serve where there are none.
    """

    name: str
    model_types: tuple[str, ...]
    architecture: str
    part: Literal["vision", "decoder", "model"]
    read: Callable[[ConfigJson], PartConfig]
    rules: Callable[[Any], list[Rule]]
    write: Callable[[Any], dict[str, Any]] | None = None
    accepts: Callable[[Any], bool] = lambda config: False
    priority: int = 0
    spellings: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()
    images: Callable[[ViTConfig], dict[str, Any]] | None = None
    gguf: GGUFForm | None = None
    parts: Callable[[ConfigJson], tuple["FamilyPart", ...]] = lambda settings: ()
    keys: Mapping[str, ConfigKeys] = MappingProxyType({})

    def config(self, settings: ConfigJson) -> PartConfig:
        """What `read` makes of a config.json, with the defaults of transformers for what it omits. Its notes get what is not known."""
        first = self.model_types[0]
        model_type = settings.text("model_type", first)
        keys = self.keys.get(model_type, self.keys.get(first, COMMON))
        own = ConfigJson(settings.content, settings.where, first, settings.notes)
        for key, neutral in keys.refused.items():
            own.must_be(key, *neutral)
        config = self.read(own)
        own.check_keys(keys, lambda: read_by_transformers(model_type, *keys.model_types))
        return config


@dataclasses.dataclass(frozen=True)
class FamilyPart:
    """A part of a whole model that is a model of another family.

    Attributes:
        prefix: in front of the names of its tensors.
        settings: within the config.json of the whole.
    """

    family: Family
    prefix: str
    settings: ConfigJson


def families(part: str | None = None) -> list[Family]:
    """All families, or those of one part, in the order of their files' names."""
    found = [module.FAMILY for module in modules_of("mmjax.weights.families")]
    return [family for family in found if part in (None, family.part)]


def find_family(settings: ConfigJson, part: str | None = None, default: str = "") -> Family:
    """The family that the model_type of a config.json names, or that of `default`. Raises InputError if mmjax has none."""
    by_type = {model_type: family for family in families(part) for model_type in family.model_types}
    model_type = settings.text("model_type", default)
    if model_type not in by_type:
        raise InputError(
            f"{settings.where}: model_type is {quoted(model_type)}; mmjax knows {', '.join(sorted(by_type))}."
        )
    return by_type[model_type]


def find_writer(config: DecoderConfig | ViTConfig, origin: str = "") -> Family:
    """The family that a part of a model is written as: the one that it came from if that still accepts it, or else the one with the highest
    priority of those that do.

    Args:
        origin: the name of the family that it came from.

    Raises:
        InputError: none accepts it.
    """
    part = "decoder" if isinstance(config, DecoderConfig) else "vision"
    accepting = [family for family in families(part) if family.accepts(config)]
    if not accepting:
        known = ", ".join(family.name for family in families(part))
        raise InputError(
            f"No family of published models has the form of this {type(config).__name__.removesuffix('Config')}, so transformers could not "
            f"read it. mmjax writes {known}."
        )
    for family in accepting:
        if family.name == origin:
            return family
    highest = max(family.priority for family in accepting)
    first, *others = [family for family in accepting if family.priority == highest]
    assert not others, f"{first.name} and {others[0].name} need different priorities"
    return first
