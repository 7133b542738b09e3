"""Scores by type of question, beside the baselines."""

from typing import Any

from mmjax.base.format import count, readable, score
from mmjax.report.html import Child, Html, definitions, legend, missing, section, table, tag
from mmjax.report.reading import Run

ORDER = 30

_EXPLAINED = {
    "question_only": "the most frequent training answer to the same question, without the image",
    "untrained": "the same model before any training",
}


def render(run: Run) -> Html:
    """The section."""
    results = run.summary.get("eval") or {}
    if not results:
        return section("Scores", missing(run.unscored))
    return section("Scores", [_task(task, result) for task, result in results.items()])


def _task(task: str, result: dict[str, Any]) -> Html:
    """The scores of one task."""
    metric, baselines = result.get("metric"), result["baselines"]
    colours = [("model", "the trained model")]
    for name in baselines:
        text = f"{readable(name)}: {_EXPLAINED[name]}" if name in _EXPLAINED else readable(name)
        if name == "question_only" and metric is not None:
            text = "question only: the most frequent training caption, whatever the image"
        colours.append((_style(name), text))
    rows = [_row("all", result["n"], result["score"], baselines, result)]
    for kind, value in result["by_type"].items():
        beside = {name: result["baselines_by_type"][name][kind] for name in baselines}
        rows.append(_row(readable(kind), result["n_by_type"][kind], value, beside, result))
    likelihood = None
    if "nll" in result:  # of the references
        full, shuffled = score(result["reference_score"], metric), result.get("nll_shuffled")
        likelihood = definitions(
            [
                ("score of the references themselves, where a bar is full", full),
                (
                    "negative log likelihood of the references, nats per token",
                    f"{result['nll']:.3f}",
                ),
                (
                    "the same beside images of other captions",
                    "there are none" if shuffled is None else f"{shuffled:.3f}",
                ),
                ("nats per caption", f"{result['nll_per_caption']:.2f}"),
            ]
        )
    head = ["questions" if metric is None else "images", "", "model", *map(readable, baselines)]
    title = tag("h3", f"{readable(task)}, {metric or 'exact match'}")
    return tag("div", title, table(head, rows, "scores"), legend(colours), likelihood)


def _row(
    name: str, number: int, value: float, baselines: dict[str, float], result: dict[str, Any]
) -> list[Child]:
    """Numbers, and a bar of the score with a tick at each baseline. It is full where all is right: at what the references would score."""
    metric, full = result.get("metric"), result.get("reference_score") or 1.0
    shown = {name: score(beside, metric) for name, beside in baselines.items()}
    ticks = []
    for baseline, beside in baselines.items():
        x = min(max(1000 * beside / full, 3), 997)
        title = tag("title", f"{readable(baseline)} {shown[baseline]}")
        ticks.append(tag("line", title, x1=x, x2=x, y1=0, y2=18, class_=_style(baseline)))
    width = min(1000 * value / full, 1000.0)
    bar = tag(
        "svg",
        tag("rect", x=0, y=4, width=1000, height=10, class_="track"),
        tag("rect", x=0, y=4, width=width, height=10, class_="model"),
        ticks,
        viewBox="0 0 1000 18",
        preserveAspectRatio="none",
        class_="bar",
        role="img",
        aria_label=score(value, metric),
    )
    return [
        [name, tag("small", count(number))],
        bar,
        tag("b", score(value, metric)),
        *shown.values(),
    ]


def _style(name: str) -> str:
    return name if name in _EXPLAINED else "baseline"
