"""Scores by type of question, beside the baselines."""

from collections.abc import Iterator
from typing import Any

from mmjax.report.html import Child, Html, tag
from mmjax.report.parts import legend, missing, section, table
from mmjax.report.reading import Run
from mmjax.report.sections.headline import score
from mmjax.report.wording import count, percent, readable

_EXPLAINED = {
    "blind": "the most frequent training answer to the same question, without looking at the picture",
    "untrained": "the same model before any training",
}


def render(run: Run) -> Html:
    """The section."""
    results = run.summary.get("eval") or {}
    if not results:
        return section("Scores", missing("This run was not evaluated: its summary has no scores."))
    return section("Scores", [_task(task, result) for task, result in results.items()])


def _task(task: str, result: dict[str, Any]) -> Html:
    baselines = result.get("baselines") or {}
    head = ["questions", "n", "", "model", *baselines]
    entries = [("model", "the trained model"), *((_style(name), f"{readable(name)}: {_EXPLAINED.get(name, 'baseline')}") for name in baselines)]
    return tag("div", tag("h3", readable(task)), table(head, _rows(result, baselines), "scores"), legend(entries))


def _rows(result: dict[str, Any], baselines: dict[str, Any]) -> Iterator[list[Child]]:
    yield _row("all", result["n"], result["score"], {name: score(value) for name, value in baselines.items()})
    for kind, of_kind in (result.get("by_type") or {}).items():
        beside = {name: (value["by_type"].get(kind) if isinstance(value, dict) else None) for name, value in baselines.items()}
        detail = of_kind if isinstance(of_kind, dict) else {"score": of_kind}
        yield _row(readable(kind), detail.get("n"), detail["score"], {name: None if value is None else score(value) for name, value in beside.items()})


def _row(name: str, number: int | None, value: float, baselines: dict[str, float | None]) -> list[Child]:
    shown = [percent(beside) if beside is not None else "–" for beside in baselines.values()]
    return [name, count(number) if number is not None else "–", _bar(value, baselines), tag("b", percent(value)), *shown]


def _bar(value: float, baselines: dict[str, float | None]) -> Html:
    """A bar of the score with a mark at each baseline."""
    marks = [
        tag("rect", tag("title", f"{readable(name)} {percent(beside)}"), x=200 * beside - 1, y=0, width=2.5, height=18, class_=_style(name))
        for name, beside in baselines.items()
        if beside is not None
    ]
    return tag(
        "svg",
        tag("rect", x=0, y=4, width=200, height=10, rx=2, class_="track"),
        tag("rect", x=0, y=4, width=200 * value, height=10, rx=2, class_="model"),
        marks,
        viewBox="-1 0 202 18",
        class_="bar",
        role="img",
        aria_label=f"{percent(value)}",
    )


def _style(name: str) -> str:
    return name if name in _EXPLAINED else "baseline"
