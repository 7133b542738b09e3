"""A resolved recipe as text for people: every setting in a tree, with a sign before those that somebody chose."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mmjax.config.checks import missing
from mmjax.recipe.recipe import Recipe, Stage
from mmjax.recipe.schema import SHARED, has_default

LEGEND = "* differs from the default   ! set on the command line   ? still to be given"
_GROUP = object()  # in the place of a value: its members follow
_NO_DEFAULT = object()


def show(recipe: Recipe, changed: Collection[str] = ()) -> str:
    """The recipe as lines "name: value", indented by two spaces for each group, with a sign in front.

    Args:
        changed: paths that the command line has set, as `config.load.load` takes them: "stages.pretrain.steps", "model.unroll".
    """
    wanted = {path.removeprefix("config."): what for path, what in missing(recipe).items()}
    variant = f":{recipe.variant}" if recipe.variant else ""
    lines = [f"{recipe.name}{variant}: {' -> '.join(recipe.stages)}", LEGEND, ""]
    for path, value, default in _settings(recipe):
        sign, text = " ", "" if value is _GROUP else f" {_text(value)}"
        inherited = ".".join(path.split(".")[2:])  # its name among what all stages share
        if path in wanted:
            sign, text = "?", f" give {wanted[path]} with --config.{path}=..."
        elif path in changed or (inherited.startswith(SHARED) and inherited in changed):
            sign = "!"
        elif default is not _NO_DEFAULT and value != default:
            sign = "*"
        lines.append(f"{sign} {'  ' * path.count('.')}{path.rsplit('.', 1)[-1]}:{text}")
    return "\n".join(lines)


def _settings(value: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Path, value and default of every setting, depth first. Names of recipe and stages, which nobody sets, are not among them."""
    members: list[tuple[str, Any, Any]] = []
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if isinstance(value, Recipe | Stage) and field.name in ("name", "variant"):
                continue
            default = _NO_DEFAULT
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            elif has_default(field):
                default = field.default
            members.append((field.name, getattr(value, field.name), default))
    else:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        members = [(str(name), item, _NO_DEFAULT) for name, item in items]
    for name, item, default in members:
        place = f"{path}.{name}" if path else name
        several = isinstance(item, tuple) and any(map(dataclasses.is_dataclass, item))
        if dataclasses.is_dataclass(item) or (isinstance(item, Mapping) and item) or several:
            yield place, _GROUP, _NO_DEFAULT
            yield from _settings(item, place)
        else:
            yield place, item, default


def _text(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return value if isinstance(value, str) and value else repr(value)
