"""Loss over training, all stages on one axis."""

import math

from mmjax.report.charts import Axes, ChartSpan, Series, line_chart
from mmjax.report.html import Html, legend, missing, section, tag
from mmjax.report.reading import Run

ORDER = 50

_HELD_OUT = "holdout/loss"


def render(run: Run) -> Html:
    """The section."""
    spans = _spans(run)
    series = [
        *_series(run, spans, "loss", "training", "train"),
        *_series(run, spans, _HELD_OUT, "held-out", "heldout"),
    ]
    if not series:
        return section(
            "Loss", missing(run.problems.get("metrics.jsonl", "No loss has been logged."))
        )
    values = [value for line in series for _, value in line.points]
    logarithmic = min(values) > 0 and max(values) / min(values) > 8
    scale = "logarithmic" if logarithmic else "linear"
    axes = Axes("step", f"nats per target token, {scale}", tuple(spans.values()), logarithmic)
    held_out = any(line.style == "heldout" for line in series)
    keys = [
        ("train", "training: mean over each log interval"),
        *([("heldout", "held-out images")] if held_out else []),
    ]
    return section(
        "Loss",
        line_chart(series, axes),
        legend(keys),
        None if held_out else missing("No held-out loss has been logged."),
        tag("p", problem, class_="missing")
        if (problem := run.problems.get("metrics.jsonl"))
        else None,
        lead="Each stage has data and targets of its own, so a step in the curve at the boundary is a change of the question too.",
    )


def _spans(run: Run) -> dict[str, ChartSpan]:
    """Where the steps of each stage lie on the common axis."""
    spans: dict[str, ChartSpan] = {}
    start = 0
    for name in run.stages:
        steps = run.setting("stages", name, "steps") or max(
            (line["step"] for line in run.metrics if line.get("stage") == name), default=0
        )
        if steps:
            tokens = run.ledger(name).get("visual_tokens_per_image")
            spans[name] = ChartSpan(
                start, start + steps, f"{name} · {tokens:,} visual tokens" if tokens else name
            )
            start += steps
    return spans


def _series(run: Run, spans: dict[str, ChartSpan], key: str, name: str, style: str) -> list[Series]:
    """One line per stage. A step that was logged twice, before and after a resumption, counts as it was logged last."""
    lines = []
    for stage, span in spans.items():
        logged = {
            line["step"]: line[key]
            for line in run.metrics
            if line.get("stage") == stage and isinstance(line.get(key), (int, float))
        }
        points = tuple(
            (span.start + step, float(value))
            for step, value in sorted(logged.items())
            if math.isfinite(value)
        )
        if points:
            lines.append(
                Series(f"{name} loss, {stage}", style, points, draw_points=style == "heldout")
            )
    return lines
