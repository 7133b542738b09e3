"""Settings as dataclasses: strict conversion of nested dictionaries by type hints, errors that say where, and how two configs differ."""

import ast
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Union

from mmjax.base.registry import Component
from mmjax.errors import InputError

ABSENT = object()
"""Stands for a setting that is not there."""
SHARED = ("model", "data")
"""What a config may say once for all stages; a stage's own is merged over it."""

_NONE_WORDS = ("none", "null")


@dataclasses.dataclass(frozen=True)
class KeyPath:
    """Where a value stands in the config, as the user would write it: "config.stages.pretrain.steps".

    A stage's model and data are its own, merged over what all stages share; a value in them is named after the place that it came from.

    Attributes:
        keys: from the root.
        own: what the stage itself says at this place.
        shared: the same place in what all stages share; None outside of stages.
    """

    keys: tuple[str, ...] = ()
    own: Any = None
    shared: tuple[str, ...] | None = None

    def __truediv__(self, key: object) -> "KeyPath":
        own = self.own.get(key, ABSENT) if isinstance(self.own, Mapping) else self.own
        return KeyPath(
            (*self.keys, str(key)), own, None if self.shared is None else (*self.shared, str(key))
        )

    def __str__(self) -> str:
        inherited = self.own is ABSENT and self.shared is not None and self.shared[0] in SHARED
        return ".".join(("config", *(self.shared if inherited and self.shared else self.keys)))


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that is most likely meant, or None if none is near."""
    names = list(names)
    folded = {candidate.lower(): candidate for candidate in reversed(names)}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def suggestion(name: str, names: Iterable[str]) -> str:
    """A sentence for an unknown name: what is meant, and what there is."""
    names = [n or repr(n) for n in names]
    near = nearest(name, names)
    meant = f"Did you mean {near}? " if near is not None else ""
    return f"{meant}There {'is' if len(names) == 1 else 'are'}: {', '.join(names) if names else 'none'}."


def choose[T](name: str, choices: Mapping[str, T], what: str) -> T:
    """choices[name]. Raises InputError with the nearest name for an unknown one; `what` says what is chosen, such as "variant"."""
    if name not in choices:
        raise InputError(f"There is no {what} {name!r}. {suggestion(name, choices)}")
    return choices[name]


def convert(value: Any, hint: Any, path: KeyPath) -> Any:
    """`value` as the type `hint`: a dataclass, a `Component` of any kind or a union of dataclasses told apart by `kind`, Literal, tuple,
    dict, optional, or scalar.

    Text, as a command line gives it, is read as the type asks: "1e3" is a whole number, "16,8,2" a tuple, "none" an absent optional value.
    A text that a config file leaves to the user (a placeholder, which is None) becomes "": `config.checks` says so where it is needed.

    Raises:
        InputError: the value does not fit; the message names the setting, what is expected and the nearest valid name.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if types.NoneType in arguments and (
            value is None or (isinstance(value, str) and value.strip().lower() in _NONE_WORDS)
        ):
            return None
        members = [member for member in arguments if member is not types.NoneType]
        if len(members) == 1:
            return convert(value, members[0], path)
        kinds = {typing.get_args(field_hints(member)["kind"])[0]: member for member in members}
        return convert(value, _kind_of(value, kinds, path), path)
    if value is None:
        if hint is str:
            return ""
        raise InputError(f"{path} has no value yet; give one with --{path}=...")
    if isinstance(hint, type) and issubclass(hint, Component) and hint.is_open():
        return convert(value, _kind_of(value, hint.kinds(), path), path)
    if dataclasses.is_dataclass(hint):
        return _as_dataclass(value, hint, path)
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"{path} is {value!r}. {suggestion(str(value), map(str, arguments))}")
        return value
    if origin is tuple:
        items = _as_items(value, path, arguments)
        element_hints = [arguments[0]] * len(items) if arguments[-1] is Ellipsis else arguments
        return tuple(
            convert(item, element, path / index)
            for index, (item, element) in enumerate(zip(items, element_hints, strict=True))
        )
    if origin is dict:
        return {
            str(key): convert(item, arguments[1], path / key)
            for key, item in _as_mapping(value, path).items()
        }
    return _as_scalar(value, hint, path)


def field_hints(cls: type) -> dict[str, Any]:
    """Type hint of each field."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def has_default(field: dataclasses.Field) -> bool:
    """Whether a config may omit the field."""
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


class Difference(NamedTuple):
    """A setting that two configs do not share.

    Attributes:
        path: from the root, such as "rope_scaling.factor".
        first, second: its value in each; ABSENT where that one has no such setting.
    """

    path: str
    first: Any
    second: Any


def differences(
    first: Any, second: Any, *, path: str = "", ignored: Collection[str] = (), tolerance: float = 0
) -> Iterator[Difference]:
    """The settings in which two configs differ, each a dataclass or a mapping whose values may be such configs again.

    Args:
        path: of the two, in front of the names.
        ignored: names at this level that are not compared.
        tolerance: numbers that are not whole count as equal within this share of them.
    """

    def settings(value: Any) -> Mapping[str, Any] | None:
        if dataclasses.is_dataclass(value):
            return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return value if isinstance(value, Mapping) else None

    def same(one: Any, other: Any) -> bool:
        if isinstance(one, float) and isinstance(other, float):
            return math.isclose(one, other, rel_tol=tolerance)
        if isinstance(one, tuple) and isinstance(other, tuple):
            return len(one) == len(other) and all(map(same, one, other))
        return one == other

    one, other = settings(first), settings(second)
    if one is None or other is None:
        if not same(first, second):
            yield Difference(path, first, second)
        return
    for name in dict.fromkeys((*one, *other)):
        if name not in ignored:
            place = f"{path}.{name}" if path else name
            yield from differences(
                one.get(name, ABSENT), other.get(name, ABSENT), path=place, tolerance=tolerance
            )


def _kind_of(value: Any, kinds: Mapping[str, Any], path: KeyPath) -> Any:
    """The dataclass that the value's `kind` names."""
    kind = _as_mapping(value, path).get("kind")
    if kind is None:
        raise InputError(f"{path}.kind is missing; it says which of {', '.join(kinds)} this is.")
    if not isinstance(kind, str) or kind not in kinds:
        raise InputError(f"{path / 'kind'} is {kind!r}. {suggestion(str(kind), kinds)}")
    return kinds[kind]


def _as_dataclass(value: Any, cls: Any, path: KeyPath) -> Any:
    mapping, hints = _as_mapping(value, path), field_hints(cls)
    for key in mapping:
        if key not in hints:
            raise InputError(
                f"{path / key}: there is no such setting. {suggestion(str(key), hints)}"
            )
    for field in dataclasses.fields(cls):
        if not has_default(field) and field.name not in mapping:
            raise InputError(
                f"{path / field.name} is missing: {_expected(hints[field.name])} is expected."
            )
    return cls(**{key: convert(item, hints[key], path / key) for key, item in mapping.items()})


def _as_mapping(value: Any, path: KeyPath) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(
            f"{path} is {value!r}; a group of settings is expected, given one by one as --{path}.<name>=<value>."
        )
    return value


def _as_items(value: Any, path: KeyPath, arguments: tuple[Any, ...]) -> list[Any]:
    """The items of a list, tuple, or text such as "16,8,2", "(16, 8, 2)" and "vision/*,connector/*"."""
    if isinstance(value, str):
        try:
            read = ast.literal_eval(value)
            value = read if isinstance(read, (list, tuple)) else [read]
        except (ValueError, SyntaxError):
            inner = value.strip().removeprefix("(").removesuffix(")")
            inner = inner.removeprefix("[").removesuffix("]")
            value = [part.strip().strip("'\"") for part in inner.split(",") if part.strip()]
    nested = typing.get_origin(arguments[0]) is tuple
    if not isinstance(value, (list, tuple)) or (
        nested and any(isinstance(item, (int, float)) for item in value)
    ):
        raise InputError(f"{path} is {value!r}; {_expected(tuple[arguments])} is expected.")  # type: ignore[valid-type]
    if arguments[-1] is not Ellipsis and len(value) != len(arguments):
        raise InputError(f"{path} has {len(value)} items; {len(arguments)} are expected.")
    return list(value)


def _as_scalar(value: Any, hint: Any, path: KeyPath) -> int | float | bool | str:
    """A whole number, number, truth value or text, of itself or as text."""
    result = value
    if hint is bool:
        if isinstance(value, str):
            result = {"true": True, "false": False}.get(value.strip().lower())
        fits = isinstance(result, bool)
    elif hint is str:
        fits = isinstance(value, str)
    else:
        if isinstance(value, str):
            for read in (int, float):
                try:
                    result = read(value)
                    break
                except ValueError:
                    continue
        fits = isinstance(result, (int, float)) and not isinstance(result, bool)
        fits = fits and math.isfinite(result) and (hint is float or int(result) == result)
        result = hint(result) if fits else result
    if not fits:
        raise InputError(f"{path} is {value!r}; {_expected(hint)} is expected.")
    return result


def _expected(hint: Any) -> str:
    """What a value of this type is, in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    plural = {int: "whole numbers", float: "numbers", bool: "true or false", str: "texts"}
    if hint in words:
        return words[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        if typing.get_origin(arguments[0]) is tuple:
            return "a list of pairs, such as ((16, 27),),"
        return f"a list of {plural.get(arguments[0], 'groups of settings')}"
    return "a group of settings"
