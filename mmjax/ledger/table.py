"""A comparison as a table on the terminal: the stages of both runs, and under each measure what is saved in it."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmjax.base.format import count, hours, operations, quantity, signed_percent
from mmjax.ledger.costs import Costs, reservations, saving, unlike

NOT_KNOWN = "–"

_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "samples": ("rows", count),
    "tokens": ("tokens", quantity),
    "seconds": ("wall-clock", hours),
    "device_seconds": ("device time", hours),
    "flops": ("FLOPs", operations),
}


def show(ours: Costs, baseline: Costs, console: Console) -> None:
    """Prints both runs, the savings, and what must be known to read them."""
    columns = [
        name
        for name in _COLUMNS
        if any(getattr(stage, name) is not None for run in (ours, baseline) for stage in run.stages)
    ]
    for name, run in (("ours", ours), ("baseline", baseline)):
        where = "" if run.total("device_seconds") is None else f", on {run.hardware}"
        console.print(f"{name:<10}{run.name}{where}", markup=False, highlight=False, soft_wrap=True)
    table = Table("", *(_COLUMNS[name][0] for name in columns), show_edge=False, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for heading, run in (("ours", ours), ("baseline", baseline)):
        lines = [
            (f"  {stage.name}", [getattr(stage, name) for name in columns]) for stage in run.stages
        ]
        table.add_row(heading)
        for title, values in (*lines, ("  all", [run.total(name) for name in columns])):
            texts = [
                NOT_KNOWN if value is None else _COLUMNS[name][1](value)
                for name, value in zip(columns, values, strict=True)
            ]
            table.add_row(Text(title), *texts)  # as text: a name is no markup
        table.add_section()
    before = saving(ours.before_last, baseline.before_last)
    for title, saved in (("saving", saving(ours, baseline)), ("  before the last stage", before)):
        # Rows and tokens are no costs.
        shares = [
            percentage(getattr(saved, name)) if hasattr(saved, name) else "" for name in columns
        ]
        table.add_row(title, *shares)
    console.print(table)
    text = "Saving: 1 - ours / baseline; below zero where ours costs more."
    console.print(text, highlight=False, soft_wrap=True)
    for sentence in (*unlike(ours, baseline), *reservations(ours, baseline)):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def percentage(share: float | None) -> str:
    """0.449 -> "44.9 %"."""
    return NOT_KNOWN if share is None else signed_percent(share)
