"""A trained stage as folders for other tools: encoder and decoder as transformers reads them, the connector beside them."""

import json
import pathlib

from rich.console import Console

from mmjax.data.text.tokenizer_files import write_tokenizer
from mmjax.errors import InputError
from mmjax.fetch.downloads import resolved
from mmjax.recipe.recipe import Recipe
from mmjax.runs.initial_weights import open_initial
from mmjax.runs.whole_folder import complete_whole
from mmjax.runs.workdir import Workdir, read_params
from mmjax.training.logging import print_line
from mmjax.weights.families.base import IMAGES, dumps
from mmjax.weights.pretrained_protocol import Origin
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

    Returns the folder, with `vision`, `connector` and `decoder` in it; a published tokenizer stands in the last. Where
    transformers' LlavaForConditionalGeneration has the form of the model, it is there as a whole, too, in `llava`.

    Raises:
        InputError: there is no such checkpoint, the folder exists, or no family of published models has the form of a part.
    """
    stage, folder = workdir.find_checkpoint(recipe, checkpoint)
    target = workdir.path / "export" / f"{stage.name}-{folder.name}"
    if target.exists():
        raise InputError(f"{target} exists already; remove it to export again.")
    recipe, tokenizer = workdir.resolve(recipe)
    save_params(
        read_params(folder, recipe),
        recipe.stages[stage.name].model,
        target,
        origins=origins(recipe, stage.name),
        image_token=tokenizer.image,
    )
    if stage.data.resize == "stretch":
        stretch(target / VISION / IMAGES)
    if recipe.tokenizer.kind == "huggingface" and recipe.tokenizer.path:
        write_tokenizer(resolved(recipe.tokenizer.path, weights=False), target / DECODER)
    complete_whole(target)
    print_line(console or Console(), f"{folder} is now in {target}")
    return target


def stretch(path: pathlib.Path) -> None:
    """Images are made as the stage has seen them, without a cut, whatever the family is used to."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    crop = settings.pop("crop_size", None)
    if crop is not None:
        settings |= {"size": crop, "do_center_crop": False}
        path.write_text(dumps(settings), encoding="utf-8")


def origins(recipe: Recipe, last: str) -> tuple[Origin, ...]:
    """Which published models the parts of a stage began as: what a stage before it loaded counts until another one loads it again."""
    found: dict[str, Origin] = {}
    for stage in recipe.stages.values():
        if stage.init_from:
            with open_initial(stage.init_from, stage.model) as weights:
                found |= {origin.part: origin for origin in weights.origins}
        if stage.name == last:
            break
    return tuple(found.values())
