"""Recipes as JSON data, and what of a recipe decides what a run trains."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mmjax.recipe.recipe import Recipe
from mmjax.recipe.schema import KeyPath, convert, to_plain

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


def to_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON data, every default written out."""
    return to_plain(recipe)


def from_json(data: Mapping[str, Any]) -> Recipe:
    """The recipe that `to_json` wrote. Raises InputError for anything else."""
    return convert(data, Recipe, KeyPath())


def digest(recipe: Recipe) -> str:
    """SHA-256 (hex) of everything that decides what the run trains; how it is watched, kept, scored and laid out is left out."""
    return hashlib.sha256(json.dumps(digested(recipe), sort_keys=True).encode()).hexdigest()


def digested(recipe: Recipe) -> dict[str, Any]:
    """What `digest` reads."""
    tree: dict[str, Any] = {
        key: value for key, value in to_json(recipe).items() if key not in _NOT_DIGESTED
    }
    for stage in tree["stages"].values():
        del stage["data"]["workers"]
        if not stage["data"]["train_on_special_tokens"]:
            del stage["data"][
                "train_on_special_tokens"
            ]  # as all runs were from before there was a choice: they can still be resumed
        for source in stage["data"]["sources"].values():
            if source.get("holdout_by") == "position":
                del source["holdout_by"]  # likewise
    return tree | {"order": list(recipe.stages)}
