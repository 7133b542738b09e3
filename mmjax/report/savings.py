"""What a run saves against another one: three measures, side by side."""

from mmjax.errors import InputError
from mmjax.ledger import Costs, Saving, costs_of_summary, reservations, saving
from mmjax.ledger.costs import unlike
from mmjax.ledger.table import NOT_KNOWN, percentage
from mmjax.report.html import Child, tag
from mmjax.report.parts import missing, table
from mmjax.report.reading import Run
from mmjax.wording import duration, operations

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
    return [title, table(_HEAD, rows, "savings"), tag("p", note, class_="note"), [missing(text) for text in reservations(ours, baseline)]]


def _costs(costs: Costs) -> list[str]:
    values = zip((duration, duration, operations), ("seconds", "device_seconds", "flops"), strict=True)
    return [NOT_KNOWN if (total := costs.total(measure)) is None else show(total) for show, measure in values]


def _shares(saved: Saving) -> list[str]:
    return [percentage(share) for share in (saved.seconds, saved.device_seconds, saved.flops)]
