"""Scores by type of question, beside the baselines."""

from collections.abc import Iterator
from typing import Any

from mmjax.report.html import Child, Html, tag
from mmjax.report.parts import legend, missing, section, table
from mmjax.report.reading import Run
from mmjax.wording import count, percent, readable

_EXPLAINED = {
    "blind": "the most frequent training answer to the same question, without the picture",
    "untrained": "the same model before any training",
}


def render(run: Run) -> Html:
    """The section."""
    results = run.summary.get("eval") or {}
    if not results:
        return section("Scores", missing("This run was not evaluated: its summary has no scores."))
    return section("Scores", [_task(task, result) for task, result in results.items()])


def _task(task: str, result: dict[str, Any]) -> Html:
    baselines = list(result["baselines"])
    colours = [("model", "the trained model"), *((_style(name), _explained(name)) for name in baselines)]
    head = ["questions", "", "model", *map(readable, baselines)]
    return tag("div", tag("h3", f"{readable(task)}, exact match"), table(head, _rows(result), "scores"), legend(colours))


def _rows(result: dict[str, Any]) -> Iterator[list[Child]]:
    yield _row("all", result["n"], result["score"], result["baselines"])
    for kind, share in result["by_type"].items():
        beside = {name: result["baselines_by_type"][name][kind] for name in result["baselines"]}
        yield _row(readable(kind), result["n_by_type"][kind], share, beside)


def _row(name: str, number: int, share: float, baselines: dict[str, float]) -> list[Child]:
    title = [name, tag("small", count(number))]
    return [title, _bar(share, baselines), tag("b", percent(share)), *(percent(beside) for beside in baselines.values())]


def _bar(share: float, baselines: dict[str, float]) -> Html:
    """A bar of the share with a mark at each baseline."""
    marks = []
    for name, beside in baselines.items():
        place = min(max(1000 * beside, 3), 997)
        marks.append(tag("line", tag("title", f"{readable(name)} {percent(beside)}"), x1=place, x2=place, y1=0, y2=18, class_=_style(name)))
    track = tag("rect", x=0, y=4, width=1000, height=10, class_="track")
    model = tag("rect", x=0, y=4, width=1000 * share, height=10, class_="model")
    look = {"viewBox": "0 0 1000 18", "preserveAspectRatio": "none", "class_": "bar", "role": "img"}
    return tag("svg", track, model, marks, **look, aria_label=percent(share))


def _style(name: str) -> str:
    return name if name in _EXPLAINED else "baseline"


def _explained(name: str) -> str:
    return f"{readable(name)}: {_EXPLAINED[name]}" if name in _EXPLAINED else readable(name)
