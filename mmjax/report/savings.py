"""What a stage would have cost with the visual tokens of the last one: the yardstick of token scaling.

What a run saves against another one: three measures, side by side.
"""

import math

from mmjax.base.format import duration, operations
from mmjax.data.text import vocabulary
from mmjax.data.text.tokenizer import WordTokenizer
from mmjax.errors import InputError
from mmjax.ledger import Costs, Saving, costs_of_summary, reservations, saving
from mmjax.ledger.costs import unlike
from mmjax.ledger.table import NOT_KNOWN, percentage
from mmjax.recipe import serialization
from mmjax.recipe.recipe import Recipe
from mmjax.report.html import Child, missing, table, tag
from mmjax.report.reading import Run
from mmjax.training.flops import step_flops


def shares_of_last_model(run: Run) -> dict[str, float]:
    """FLOPs of a step of each stage over those of the same step (same rows, same text) on the model of the last stage.

    Raises:
        InputError: the config is missing or of another version, or its tokenizer is missing.
    """
    recipe = _recipe(run)
    last = list(recipe.stages.values())[-1].model
    return {
        name: step_flops(stage.model, stage).total / step_flops(last, stage).total
        for name, stage in recipe.stages.items()
    }


def last_model(run: Run) -> str:
    """The model of the last stage as the yardstick: "84 visual tokens of a 64-pixel image"."""
    model = list(_recipe(run).stages.values())[-1].model
    per_side = math.isqrt(model.vision.patches)
    return f"{model.visual_tokens:,} visual tokens of an image of {model.vision.image_size} pixels ({per_side} x {per_side} patches)"


def _recipe(run: Run) -> Recipe:
    recipe = serialization.from_json(run.config)
    if recipe.tokenizer.kind == "words" and any(
        not stage.model.decoder.vocabulary for stage in recipe.stages.values()
    ):
        recipe = vocabulary.fit(recipe, WordTokenizer.load(run.path / "tokenizer.json"))
    return recipe


_HEAD = ("", "time", "device time", "arithmetic")
_NOTE = (
    "A saving is 1 - this run / the other; below zero, this run cost more. Arithmetic depends on the "
    "two recipes alone, device time also on the hardware and on how well it was used, time also on how many devices there were."
)


def render(run: Run) -> Child:
    """Nothing where the run is compared with no other."""
    if run.against is None:
        return None
    title = tag("h3", f"What it saves against {run.against.name}")
    try:
        ours = costs_of_summary(run.name, run.summary, run.stages)
    except InputError as error:
        return [title, missing(f"The saving cannot be computed: {error}")]
    baseline = run.against
    rows: list[list[Child]] = [
        ["this run", *_costs(ours)],
        ["the other run", *_costs(baseline)],
        ["saving", *(tag("b", text) for text in _shares(saving(ours, baseline)))],
        ["saving before the last stage", *_shares(saving(ours.before_last, baseline.before_last))],
    ]
    note = " ".join((_NOTE, *unlike(ours, baseline)))
    return [
        title,
        table(_HEAD, rows, "savings"),
        tag("p", note, class_="note"),
        [missing(text) for text in reservations(ours, baseline)],
    ]


def _costs(costs: Costs) -> list[str]:
    values = zip(
        (duration, duration, operations), ("seconds", "device_seconds", "flops"), strict=True
    )
    return [
        NOT_KNOWN if (total := costs.total(measure)) is None else show(total)
        for show, measure in values
    ]


def _shares(saved: Saving) -> list[str]:
    return [percentage(share) for share in (saved.seconds, saved.device_seconds, saved.flops)]
