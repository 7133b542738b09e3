"""A comparison as a table on the terminal: the stages of both runs, and under each measure what is saved in it."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmjax.base.format import count, hours, operations, quantity, signed_percent
from mmjax.ledger.costs import Costs, Saving, reservations, saving, unlike

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
        for name, *values in _run(heading, run, columns):
            table.add_row(Text(name), *values)  # as text: a name is no markup
        table.add_section()
    table.add_row("saving", *_shown(saving(ours, baseline), columns))
    table.add_row(
        "  before the last stage", *_shown(saving(ours.before_last, baseline.before_last), columns)
    )
    console.print(table)
    text = "Saving: 1 - ours / baseline; below zero where ours costs more."
    console.print(text, highlight=False, soft_wrap=True)
    for sentence in (*unlike(ours, baseline), *reservations(ours, baseline)):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _run(heading: str, run: Costs, columns: list[str]) -> list[list[str]]:
    """A heading, a line for each stage, and one for their sum."""
    lines = [
        [f"  {stage.name}", *(_text(name, getattr(stage, name)) for name in columns)]
        for stage in run.stages
    ]
    return [
        [heading, *("" for _ in columns)],
        *lines,
        ["  all", *(_text(name, run.total(name)) for name in columns)],
    ]


def _text(column: str, value: float | None) -> str:
    return NOT_KNOWN if value is None else _COLUMNS[column][1](value)


def _shown(saved: Saving, columns: list[str]) -> list[str]:
    """Under each measure its saving; rows and tokens are no costs."""
    return [percentage(getattr(saved, name)) if hasattr(saved, name) else "" for name in columns]


def percentage(share: float | None) -> str:
    """0.449 -> "44.9 %"."""
    return NOT_KNOWN if share is None else signed_percent(share)
