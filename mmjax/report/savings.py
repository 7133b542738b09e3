"""What a run saves: by its visual tokens, beside the model of its last stage; and against another run, in three measures side by side."""

import math

from mmjax.base.format import duration, operations
from mmjax.errors import InputError
from mmjax.ledger import costs_of_summary, reservations, saving
from mmjax.ledger.costs import unlike
from mmjax.ledger.table import NOT_KNOWN, percentage
from mmjax.recipe import serialization
from mmjax.report.html import Child, missing, table, tag
from mmjax.report.reading import Run
from mmjax.training.flops import step_flops


def shares_of_last_model(run: Run) -> dict[str, float]:
    """FLOPs of a step of each stage over those of the same step (same rows, same text) on the model of the last stage.

    Raises:
        InputError: the config is missing or of another version.
    """
    recipe = serialization.from_json(run.config)
    last = list(recipe.stages.values())[-1].model
    return {
        name: step_flops(stage.model, stage).total / step_flops(last, stage).total
        for name, stage in recipe.stages.items()
    }


def last_model(run: Run) -> str:
    """The model of the last stage as the yardstick: "84 visual tokens of a 64-pixel image"."""
    model = list(serialization.from_json(run.config).stages.values())[-1].model
    per_side = math.isqrt(model.vision.patches)
    return f"{model.visual_tokens:,} visual tokens of an image of {model.vision.image_size} pixels ({per_side} x {per_side} patches)"


_NOTE = (
    "A saving is 1 - this run / the other; below zero, this run cost more. Arithmetic depends on the "
    "two recipes alone, device time also on the hardware and on how well it was used, time also on how many devices there were."
)


def render(run: Run) -> Child:
    """Nothing where the run is compared with no other."""
    baseline = run.against
    if baseline is None:
        return None
    title = tag("h3", f"What it saves against {baseline.name}")
    try:
        ours = costs_of_summary(run.name, run.summary, run.stages)
    except InputError as error:
        return [title, missing(f"The saving cannot be computed: {error}")]
    columns = {
        "time": ("seconds", duration),
        "device time": ("device_seconds", duration),
        "arithmetic": ("flops", operations),
    }
    rows: list[list[Child]] = []
    for name, costs in (("this run", ours), ("the other run", baseline)):
        totals = [(costs.total(measure), show) for measure, show in columns.values()]
        rows.append([name, *(NOT_KNOWN if n is None else show(n) for n, show in totals)])
    all_stages, before = saving(ours, baseline), saving(ours.before_last, baseline.before_last)
    measures = [measure for measure, _ in columns.values()]
    shares = [percentage(getattr(all_stages, measure)) for measure in measures]
    rows.append(["saving", *(tag("b", share) for share in shares)])
    shares = [percentage(getattr(before, measure)) for measure in measures]
    rows.append(["saving before the last stage", *shares])
    note = " ".join((_NOTE, *unlike(ours, baseline)))
    return [
        title,
        table(("", *columns), rows, "savings"),
        tag("p", note, class_="note"),
        [missing(text) for text in reservations(ours, baseline)],
    ]
