"""Components that describe themselves: one file each, found by listing their folder. There is no table of them to keep up to date."""

import importlib
import pkgutil
from types import ModuleType
from typing import ClassVar, Literal, Self, get_args, get_origin


def modules_of(package: str) -> list[ModuleType]:
    """The modules of a package by name, without `base`, which says what they have in common."""
    names = sorted(
        module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__)
    )
    return [importlib.import_module(f"{package}.{name}") for name in names if name != "base"]


class Component:
    """Base of the configs of things that come in several kinds.

    One class for each sort of thing derives from it and names the `package` whose modules are its kinds, such as `ConnectorConfig`. Each
    kind derives from that: a frozen dataclass in a module of its own, whose field `kind: Literal["name"]` is its name in a config.
    """

    package: ClassVar[str]

    @classmethod
    def kinds(cls) -> dict[str, type[Self]]:
        """The dataclass of each kind, by its name."""
        found: dict[str, type[Self]] = {}
        for module in modules_of(cls.package):
            for value in vars(module).values():
                if (
                    isinstance(value, type)
                    and issubclass(value, cls)
                    and value.__module__ == module.__name__
                ):
                    parameters = getattr(value, "__dataclass_params__", None)
                    assert parameters is not None and parameters.frozen, (
                        f"{value.__name__} must be a frozen dataclass: @dataclasses.dataclass(frozen=True)"
                    )
                    hint = value.__annotations__.get("kind")
                    assert get_origin(hint) is Literal, (
                        f'{value.__name__} needs a field kind: Literal["name"]'
                    )
                    (name,) = get_args(hint)
                    assert name not in found, f"two kinds are called {name!r}"
                    found[name] = value
        return found

    @classmethod
    def is_open(cls) -> bool:
        """Whether this stands for any of its kinds, and is none of them."""
        return "kind" not in cls.__dict__.get("__dataclass_fields__", {})
