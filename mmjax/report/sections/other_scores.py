"""Scores that are not the run's own: of other points than its end, of some of the images, with other settings."""

from typing import Any

from mmjax.base.format import count, first_of, readable, score
from mmjax.report.html import Child, Html, section, table, tag
from mmjax.report.reading import Record, Run

ORDER = 40

_LEAD = (
    "What was scored beside the run's own score: a checkpoint, what a stage begins with, or the end on some of the images or with other "
    "settings. The newest score of each."
)
# Settings that change no score, or that the score itself shows.
_NOT_NAMED = ("batch_size", "limit", "tasks", "untrained")


_LIKELIHOODS = {"nll": "nats per token", "nll_shuffled": "the same beside other images"}


def render(run: Run) -> Html | None:
    """The section; None if there are no such scores."""
    last = next(reversed(run.stages), None)
    steps = run.setting("stages", last, "steps") if last else None
    records: dict[tuple[Any, ...], Record] = {}
    for record in run.evaluations:
        if not record.get("eval"):
            continue
        changed = _changed(run, record)
        of_the_run = (record.get("stage"), record.get("step")) == (last, steps) and not changed
        if of_the_run and not _partial(record):
            continue  # the end has a section of its own
        records[record.get("stage"), record.get("step"), _partial(record), changed] = record
    if not records:
        return None
    columns: dict[tuple[str, str, str | None], str] = {}
    for record in records.values():
        results = record["eval"]
        for task, result in results.items():
            metric = result.get("metric")
            columns[task, "score", metric] = f"{readable(task)}, {metric or 'exact match'}"
        for task, result in results.items():
            for key, words in _LIKELIHOODS.items():
                if key in result:
                    columns[task, key, None] = f"{readable(task)}, {words}"
    rows = []
    for (stage, step, partial, changed), record in records.items():
        where = tag("small", f"step {count(step)}" if step else "what it begins with")
        remarks = [tag("small", f"; {remark}") for remark in filter(None, (partial, changed))]
        row: list[Child] = [[str(stage), ", ", where, *remarks]]
        for task, key, metric in columns:
            value = record["eval"].get(task, {}).get(key)
            if value is None:
                row.append("–")
            else:
                row.append(score(value, metric) if key == "score" else f"{value:.3f}")
        rows.append(row)
    return section("Other scores", table(["point", *columns.values()], rows, "points"), lead=_LEAD)


def _partial(record: Record) -> str:
    """Of which tasks it saw some images only; "" if of none."""
    return ", ".join(
        f"{readable(task)}: {first_of(result['partial'])}"
        for task, result in record["eval"].items()
        if "partial" in result
    )


def _changed(run: Run, record: Record) -> str:
    """What else than in the run's own score is not as it says: settings, or the data that were read; "" if nothing."""
    own, settings = run.config.get("evaluation") or {}, record.get("evaluation") or {}
    changed = [
        f"{readable(name)} {value}"
        for name, value in settings.items()
        if name in own and name not in _NOT_NAMED and value != own[name]
    ]
    return ", ".join(
        [*changed, *(["the data have changed since"] if record.get("changed_data") else [])]
    )
