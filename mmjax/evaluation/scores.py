"""Scores of answers, over all questions and by their type."""

import math
from collections.abc import Iterable, Sequence

from mmjax.evaluation.task import Question, Scores


def exact_match(questions: Sequence[Question], answers: Iterable[str]) -> Scores:
    """Shares of right answers. One is right if it equals the truth, letter by letter. There is at least one question."""
    return mean_scores(questions, [answer == question.truth for question, answer in zip(questions, answers, strict=True)])


def mean_scores(questions: Sequence[Question], values: Sequence[float]) -> Scores:
    """Means of what each answer scores. There is at least one question."""
    of_kind: dict[str, list[float]] = {kind: [] for kind in sorted({question.kind for question in questions})}
    for question, value in zip(questions, values, strict=True):
        of_kind[question.kind].append(value)
    return Scores(
        score=math.fsum(values) / len(values),
        by_type={kind: math.fsum(some) / len(some) for kind, some in of_kind.items()},
        n_by_type={kind: len(some) for kind, some in of_kind.items()},
    )
