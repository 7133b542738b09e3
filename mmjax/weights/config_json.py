"""The config.json of a published model: read strictly, so that nothing that changes the function is overlooked."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.base.files import read_object
from mmjax.errors import InputError

CONFIG = "config.json"
IMAGES = "preprocessor_config.json"
_LARGEST_NUMBER = 1e30  # not one that overflows float32 when something is done with it
_MISSING = object()


class ConfigJson:
    """A JSON object whose settings are asked for with the type that they must have; every error names the file and the setting."""

    def __init__(self, content: Mapping[str, Any], where: str):
        self.content, self.where = content, where

    def __contains__(self, key: str) -> bool:
        return self.content.get(key) is not None

    def number(self, key: str, default: Any = _MISSING) -> int:
        """A whole number that is not negative."""
        value = self._get(key, default)
        if value is not default and (
            not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**40
        ):
            raise self.wrong(key, value, "a whole number")
        return value

    def real(self, key: str, default: Any = _MISSING) -> float:
        """A finite number."""
        value = self._get(key, default)
        if value is not default and not _is_real(value):
            raise self.wrong(key, value, "a number")
        return value if value is default else float(value)

    def flag(self, key: str, default: Any = _MISSING) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: Any = _MISSING) -> str:
        """A text."""
        value = self._get(key, default)
        if value is not default and not isinstance(value, str):
            raise self.wrong(key, value, "a text")
        return value

    def numbers(self, key: str, count: int, default: Any = _MISSING) -> tuple[float, ...]:
        """So many numbers."""
        value = self._get(key, default)
        if value is default:
            return value
        if not isinstance(value, list) or len(value) != count or not all(map(_is_real, value)):
            raise self.wrong(key, value, f"a list of {count} numbers")
        return tuple(map(float, value))

    def part(self, key: str) -> "ConfigJson":
        """A JSON object within; empty if it is absent."""
        value = self.content.get(key) or {}
        if not isinstance(value, Mapping):
            raise self.wrong(key, value, "an object")
        return ConfigJson(value, f"{self.where}, {key}")

    def choice[T](self, key: str, choices: Mapping[str, T], default: Any = _MISSING) -> T:
        """What one of the texts that are possible stands for."""
        value = self.text(key, default)
        if value not in choices:
            raise InputError(
                f"{self.where}: {key} is {_shown(value)}; mmjax knows {', '.join(choices)}."
            )
        return choices[value]

    def must_be(self, key: str, *allowed: Any) -> None:
        """Refuses settings that would change the function in a way that mmjax does not have. An absent one is the first of `allowed`."""
        value = self.content.get(key, allowed[0])
        if value not in allowed:
            raise InputError(
                f"{self.where}: {key} is {_shown(value)}; mmjax has {' or '.join(map(_shown, allowed))} only."
            )

    def wrong(self, key: str, value: Any, expected: str) -> InputError:
        """The error for a value that cannot be."""
        return InputError(f"{self.where}: {key} is {_shown(value)}; it must be {expected}.")

    def _get(self, key: str, default: Any) -> Any:
        value = self.content.get(key)
        if value is None:
            value = default
        if value is _MISSING:
            raise InputError(f"{self.where}: {key} is missing.")
        return value


def read_config(folder: Path, name: str = CONFIG) -> ConfigJson:
    """The config.json of a folder. Raises InputError if it is missing, damaged or no JSON object."""
    path = folder / name
    if not os.path.lexists(path):
        raise InputError(f"{folder} has no {name}, which says what model the weights belong to.")
    return ConfigJson(read_object(path), str(path))


def dumps(content: dict[str, Any]) -> str:
    """JSON as every config.json of ours is written: the same bytes for the same settings."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _is_real(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < _LARGEST_NUMBER
    )


def _shown(value: Any) -> str:
    text = json.dumps(_shortened(value), default=str)
    return text if len(text) <= 80 else text[:80] + "..."


def _shortened(value: Any) -> Any:
    """What of a value can be shown: those of GGUF files may be lists and texts of any length."""
    if isinstance(value, list):
        return [_shortened(item) for item in value[:81]]
    return value[:81] if isinstance(value, str) else value
