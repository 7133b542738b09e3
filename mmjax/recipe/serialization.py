"""Settings as JSON data and back, and the digest of what in a recipe decides what a run trains."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mmjax.recipe.recipe import Recipe
from mmjax.recipe.schema import KeyPath, convert

# Settings that say how a run is watched, kept, scored or laid out, not what it trains: a run may be resumed with others.
_NOT_DIGESTED = (
    "name",
    "variant",
    "checkpoint",
    "logging",
    "evaluation",
    "mesh",
    "kernels",
    "notes",
)


def to_plain(value: Any) -> Any:
    """Dataclasses and tuples as dictionaries and lists, ready for JSON; the inverse of `schema.convert`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def to_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON data, every default written out."""
    return to_plain(recipe)


def from_json(data: Mapping[str, Any]) -> Recipe:
    """The recipe that `to_json` wrote. Raises InputError for anything else."""
    return convert(data, Recipe, KeyPath())


def digested(recipe: Recipe) -> dict[str, Any]:
    """Everything that decides what the run trains, as JSON data; how it is watched, kept, scored and laid out is not part of it."""
    tree = {key: value for key, value in to_json(recipe).items() if key not in _NOT_DIGESTED}
    for stage in tree["stages"].values():
        del stage["data"]["workers"]
        for source in stage["data"]["sources"].values():
            if not source.get("image_roots", True):
                # It came later than the others; where it is empty, digests are what they were.
                del source["image_roots"]
    return tree | {"order": list(recipe.stages)}


def digest(recipe: Recipe) -> str:
    """SHA-256 (hex) of what is `digested`."""
    return hashlib.sha256(json.dumps(digested(recipe), sort_keys=True).encode()).hexdigest()
