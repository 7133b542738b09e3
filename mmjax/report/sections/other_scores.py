"""Scores of other points of the run than its end, such as a stage's beginning: what `--mode=evaluate` has noted."""

from mmjax.base.format import count, readable, score
from mmjax.report.html import Child, Html, section, table, tag
from mmjax.report.reading import Run

ORDER = 40

_LEAD = (
    "What --mode=evaluate has scored beside the end of the run: a checkpoint, or what a stage begins with. "
    "The newest score of each point."
)


_LIKELIHOODS = {"nll": "nats per token", "nll_shuffled": "the same beside other images"}


def render(run: Run) -> Html | None:
    """The section; None if there are no such scores."""
    records = {
        (record.get("stage"), record.get("step")): record
        for record in run.evaluations
        if record.get("eval")
    }
    for name, stage in list(run.config.get("stages", {}).items())[-1:]:
        records.pop((name, stage.get("steps")), None)  # the end has a section of its own
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
    for record in records.values():
        step = record.get("step")
        where = tag("small", f"step {count(step)}" if step else "what it begins with")
        row: list[Child] = [[str(record.get("stage")), ", ", where]]
        for task, key, metric in columns:
            value = record["eval"].get(task, {}).get(key)
            if value is None:
                row.append("–")
            else:
                row.append(score(value, metric) if key == "score" else f"{value:.3f}")
        rows.append(row)
    return section(
        "Scores of other points", table(["point", *columns.values()], rows, "points"), lead=_LEAD
    )
