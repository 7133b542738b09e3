"""Scores by exact match, over all questions and by their type."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmjax.evaluation.task import Question


@dataclass(frozen=True)
class Scores:
    """Shares of right answers.

    Attributes:
        score: over all questions.
        by_type, n_by_type: share and number of each type, types in alphabetical order.
    """

    score: float
    by_type: dict[str, float]
    n_by_type: dict[str, int]

    @property
    def n(self) -> int:
        """Number of questions."""
        return sum(self.n_by_type.values())


def exact_match(questions: Sequence[Question], answers: Iterable[str]) -> Scores:
    """An answer is right if it equals the truth, letter by letter. There is at least one question."""
    right: dict[str, list[bool]] = {kind: [] for kind in sorted({question.kind for question in questions})}
    for question, answer in zip(questions, answers, strict=True):
        right[question.kind].append(answer == question.truth)
    return Scores(
        score=sum(map(sum, right.values())) / len(questions),
        by_type={kind: sum(of_kind) / len(of_kind) for kind, of_kind in right.items()},
        n_by_type={kind: len(of_kind) for kind, of_kind in right.items()},
    )
