"""Scores of other points of the run than its end, such as a stage's beginning: what `--mode=evaluate` has noted."""

from typing import Any

from mmjax.base.format import count, readable, score
from mmjax.report.html import Child, Html, section, table, tag
from mmjax.report.reading import Record, Run

_LEAD = (
    "What --mode=evaluate has scored beside the end of the run: a checkpoint, or what a stage begins with. "
    "The newest score of each point."
)


def render(run: Run) -> Html | None:
    """The section; None if there are no such scores."""
    records = {
        (record.get("stage"), record.get("step")): record
        for record in run.evaluations
        if record.get("eval")
    }
    records.pop(_end(run), None)  # whose scores have a section of their own
    if not records:
        return None
    columns = list(
        dict.fromkeys(column for record in records.values() for column in _columns(record["eval"]))
    )
    head = ["point", *(_title(column) for column in columns)]
    return section(
        "Scores of other points",
        table(head, [_row(record, columns) for record in records.values()], "points"),
        lead=_LEAD,
    )


def _end(run: Run) -> tuple[Any, Any]:
    """(stage, step) of the last checkpoint."""
    stages = list(run.config.get("stages", {}).items())
    return (stages[-1][0], stages[-1][1].get("steps")) if stages else (None, None)


def _columns(results: dict[str, Any]) -> list[tuple[str, str, str | None]]:
    """(task, key of its result, measure): the score of each task, and how likely true captions are where that was measured."""
    found = [(task, "score", result.get("metric")) for task, result in results.items()]
    return found + [
        (task, key, "")
        for task, result in results.items()
        for key in ("nll", "nll_shuffled")
        if key in result
    ]


def _title(column: tuple[str, str, str | None]) -> str:
    task, key, measure = column
    words = {"nll": "nats per token", "nll_shuffled": "the same beside other images"}
    return f"{readable(task)}, {words.get(key) or measure or 'exact match'}"


def _row(record: Record, columns: list[tuple[str, str, str | None]]) -> list[Child]:
    step = record.get("step")
    where = tag("small", f"step {count(step)}" if step else "what it begins with")
    shown = [
        _shown(record["eval"].get(task, {}).get(key), measure) for task, key, measure in columns
    ]
    return [[str(record.get("stage")), ", ", where], *shown]


def _shown(value: float | None, measure: str | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if measure == "" else score(value, measure)
