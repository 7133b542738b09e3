"""A trained stage as folders for other tools: encoder and decoder as transformers reads them, the connector beside them."""

import json
import pathlib

from rich.console import Console

from mmjax.base.files import atomic_directory
from mmjax.errors import InputError
from mmjax.recipe.recipe import Recipe
from mmjax.runs.origins import began_as, with_context, write_beside_decoder, write_licences
from mmjax.runs.workdir import Workdir, read_params
from mmjax.training.logging import print_line
from mmjax.weights.families.base import IMAGES, dumps
from mmjax.weights.save import save_params
from mmjax.weights.vlm_checkpoint import DECODER, VISION


def export(
    recipe: Recipe,
    workdir: Workdir,
    *,
    checkpoint: str | None = None,
    console: Console | None = None,
) -> pathlib.Path:
    """Writes the newest state of a run, or a checkpoint folder, to `export/<stage>-<step>` in the workdir; low-rank updates are merged.

    Returns the folder, with `vision`, `connector` and `decoder` in it; tokenizer and settings of generation stand in the last.

    Raises:
        InputError: there is no such checkpoint, the folder exists, or no family of published models has the form of a part.
    """
    stage, folder = workdir.find_checkpoint(recipe, checkpoint)
    target = workdir.path / "export" / f"{stage.name}-{folder.name}"
    if target.exists():
        raise InputError(f"{target} exists already; remove it to export again.")
    recipe, tokenizer = workdir.resolve(recipe)
    begun = began_as(recipe, workdir, stage.name)
    model = with_context(recipe.stages[stage.name].model, stage, begun)
    origins = [part.origin for part in begun.values() if part.origin is not None]
    params = read_params(folder, recipe)
    with atomic_directory(target) as draft:
        save_params(params, model, draft, origins=origins)
        if stage.data.resize == "stretch":
            stretch(draft / VISION / IMAGES)
        write_beside_decoder(workdir, recipe, stage, tokenizer, begun, draft / DECODER)
        write_licences(workdir, recipe, stage.name, draft)
    print_line(console or Console(), f"{folder} is now in {target}")
    return target


def stretch(path: pathlib.Path) -> None:
    """Images are made as the stage has seen them, without a cut, whatever the family is used to."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    crop = settings.pop("crop_size", None)
    if crop is not None:
        settings |= {"size": crop, "do_center_crop": False}
        path.write_text(dumps(settings), encoding="utf-8")
