"""What a run has left on disk: its tokenizer, its checkpoints, the parameters in them."""

import pathlib
from collections.abc import Mapping

from jax.sharding import Sharding

from mmjax import vocabulary
from mmjax.data.tokenizer import Tokenizer, WordTokenizer
from mmjax.errors import InputError
from mmjax.recipe import Recipe, Stage
from mmjax.recipe_json import digest
from mmjax.training.checkpoint import load_params
from mmjax.typing import Params
from mmjax.workdir import Workdir


def read_params(checkpoint: pathlib.Path, fitted: Recipe, shardings: Mapping[str, Sharding] | None = None) -> Params:
    """The parameters of a checkpoint folder of this recipe (with its vocabulary), or those that `shardings` names, read to where it says.

    Raises InputError if another recipe made it.
    """
    params, metadata = load_params(checkpoint, shardings)
    if metadata.get("config_digest") != digest(fitted):
        raise InputError(f"{checkpoint} was made by another recipe; name the one that made it, or its --workdir alone.")
    return params


def prepare_tokenizer(recipe: Recipe, folder: pathlib.Path, *, build: bool = True) -> tuple[Tokenizer, Recipe]:
    """The tokenizer of a run and the recipe with a vocabulary for it.

    Args:
        folder: of the run. A tokenizer of words is kept there, so that the ids stay the same whatever becomes of the data.
        build: make one from the training text if there is none yet.

    Raises:
        InputError: it cannot be read or built, or a decoder has fewer tokens.
    """
    path = folder / "tokenizer.json"
    if recipe.tokenizer.kind != "words":
        tokenizer = vocabulary.make_tokenizer(recipe)
    elif path.exists() or not build:
        tokenizer = WordTokenizer.load(path)
    else:
        made = vocabulary.make_tokenizer(recipe)
        assert isinstance(made, WordTokenizer)
        made.save(path)
        tokenizer = made
    return tokenizer, vocabulary.fit(recipe, tokenizer)


def find_checkpoint(recipe: Recipe, workdir: Workdir, checkpoint: str | None) -> tuple[Stage, pathlib.Path]:
    """The stage and folder of a checkpoint: the given one, or the newest of the last stage that has any.

    Raises:
        InputError: there is none.
    """
    if checkpoint is not None:
        folder = pathlib.Path(checkpoint).absolute()
        if not folder.is_dir() or not folder.name.isdecimal():
            there = "".join(_steps_in(place) for place in (folder, folder.parent))
            raise InputError(f"There is no checkpoint {checkpoint}: a folder checkpoints/<stage>/<step> is expected.{there}")
        if folder.parent.name not in recipe.stages:
            raise InputError(f"{checkpoint} is a checkpoint of stage {folder.parent.name!r}; the recipe has {', '.join(recipe.stages)}.")
        return recipe.stages[folder.parent.name], folder
    for stage in reversed(recipe.stages.values()):
        if (newest := newest_step(workdir.checkpoints / stage.name)) is not None:
            return stage, workdir.checkpoints / stage.name / str(newest)
    raise InputError(f"There is no checkpoint in {workdir.path}: train first, or name one with --checkpoint.")


def _steps_in(folder: pathlib.Path) -> str:
    """A sentence; nothing where there are none."""
    found = sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())
    return f" {folder} has {', '.join(map(str, found))}." if found else ""


def newest_step(folder: pathlib.Path) -> int | None:
    """The step of the newest checkpoint of a stage, or None."""
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()] if folder.is_dir() else []
    return max(steps, default=None)
