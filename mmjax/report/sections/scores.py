"""Scores by type of question, beside the baselines."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmjax.base.format import count, readable, score
from mmjax.report.html import Child, Html, definitions, legend, missing, section, table, tag
from mmjax.report.reading import Run

_EXPLAINED = {
    "question_only": "the most frequent training answer to the same question, without the image",
    "untrained": "the same model before any training",
}


def render(run: Run) -> Html:
    """The section."""
    results = run.summary.get("eval") or {}
    if not results:
        return section("Scores", missing("This run was not evaluated: its summary has no scores."))
    return section("Scores", [_Table(task, result).render() for task, result in results.items()])


@dataclass(frozen=True)
class _Table:
    """The scores of one task."""

    task: str
    result: dict[str, Any]

    @property
    def metric(self) -> str | None:
        """What the scores are, if not shares of right answers."""
        return self.result.get("metric")

    def render(self) -> Html:
        baselines = list(self.result["baselines"])
        colours = [
            ("model", "the trained model"),
            *((_style(name), self._explained(name)) for name in baselines),
        ]
        head = [
            "questions" if self.metric is None else "images",
            "",
            "model",
            *map(readable, baselines),
        ]
        title = tag("h3", f"{readable(self.task)}, {self.metric or 'exact match'}")
        return tag(
            "div", title, table(head, self._rows(), "scores"), legend(colours), self._beside()
        )

    def _rows(self) -> Iterator[list[Child]]:
        result = self.result
        yield self._row("all", result["n"], result["score"], result["baselines"])
        for kind, value in result["by_type"].items():
            beside = {name: result["baselines_by_type"][name][kind] for name in result["baselines"]}
            yield self._row(readable(kind), result["n_by_type"][kind], value, beside)

    def _row(
        self, name: str, number: int, value: float, baselines: dict[str, float]
    ) -> list[Child]:
        title = [name, tag("small", count(number))]
        return [
            title,
            self._bar(value, baselines),
            tag("b", self._shown(value)),
            *(self._shown(beside) for beside in baselines.values()),
        ]

    def _bar(self, value: float, baselines: dict[str, float]) -> Html:
        """A bar of the score with a mark at each baseline. It is full where all is right: at what the true answers would score."""
        full = self.result.get("reference_score") or 1.0
        marks = []
        for name, beside in baselines.items():
            place = min(max(1000 * beside / full, 3), 997)
            title = tag("title", f"{readable(name)} {self._shown(beside)}")
            marks.append(tag("line", title, x1=place, x2=place, y1=0, y2=18, class_=_style(name)))
        track = tag("rect", x=0, y=4, width=1000, height=10, class_="track")
        model = tag(
            "rect", x=0, y=4, width=min(1000 * value / full, 1000.0), height=10, class_="model"
        )
        look = {
            "viewBox": "0 0 1000 18",
            "preserveAspectRatio": "none",
            "class_": "bar",
            "role": "img",
        }
        return tag("svg", track, model, marks, **look, aria_label=self._shown(value))

    def _beside(self) -> Html | None:
        """How likely the model finds the true captions, where that was measured."""
        result = self.result
        if "nll" not in result:
            return None
        shuffled = result.get("nll_shuffled")
        return definitions(
            [
                (
                    "score of the true captions themselves, where a bar is full",
                    self._shown(result["reference_score"]),
                ),
                (
                    "negative log likelihood of the true captions, nats per token",
                    f"{result['nll']:.3f}",
                ),
                (
                    "the same beside images of other captions",
                    "there are none" if shuffled is None else f"{shuffled:.3f}",
                ),
                ("nats per caption", f"{result['nll_per_caption']:.2f}"),
            ]
        )

    def _shown(self, value: float) -> str:
        return score(value, self.metric)

    def _explained(self, name: str) -> str:
        if name == "question_only" and self.metric is not None:
            return "question only: the most frequent training caption, whatever the image"
        return f"{readable(name)}: {_EXPLAINED[name]}" if name in _EXPLAINED else readable(name)


def _style(name: str) -> str:
    return name if name in _EXPLAINED else "baseline"
