"""How answers are scored: CIDEr-D for captions, exact match for short answers; and means over questions and by their type.

CIDEr-D (Vedantam, Zitnick and Parikh, arXiv:1411.5726) says how alike captions are to those that people wrote. A caption is compared with
each reference of its image by their n-grams, for n = 1 .. 4. An n-gram weighs as often as it occurs times log(images / images that have it
in some reference): what fits every image counts for nothing. The similarity is the cosine of the two vectors of weights, where those of the
candidate are clipped to those of the reference, so that repeating a word gains nothing, times a Gaussian of the difference in length (sigma
6 words). The score is the mean over n and over the references, times 10. Frequencies come from the references that are scored, so an image
by itself has score 0; and a caption of two words, which has no longer n-grams than that, scores at most 5.

Words are those of `normalised`: lower case, cut at white space and punctuation. The PTB tokenizer, with which scores are usually computed,
differs in words with hyphens, dots or apostrophes within.
"""

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mmjax.data.sources.caption_split import normalised
from mmjax.evaluation.tasks.base import Question, Scores

METRIC = "CIDEr-D"

_ORDERS = (1, 2, 3, 4)
_SIGMA, _SCALE = 6.0, 10.0

type _Gram = tuple[str, ...]


@dataclass(frozen=True)
class _Caption:
    """A caption: its words, and for each n the weights of its n-grams."""

    words: int
    weights: tuple[Mapping[_Gram, float], ...]


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The score of each candidate, from 0 to 10; references: those of its image, at least one."""
    grams = [
        {gram for text in of_image for n in _ORDERS for gram in _grams(text, n)}
        for of_image in references
    ]
    images = collections.Counter(gram for of_image in grams for gram in of_image)

    def weigh(text: str) -> _Caption:
        weights = (
            {
                gram: count * math.log(len(grams) / max(1, images[gram]))
                for gram, count in collections.Counter(_grams(text, n)).items()
            }
            for n in _ORDERS
        )
        return _Caption(len(normalised(text).split()), tuple(weights))

    scores = []
    for candidate, of_image in zip(map(weigh, candidates), references, strict=True):
        similarities = [_similarity(candidate, weigh(text)) for text in of_image]
        scores.append(_SCALE * math.fsum(similarities) / len(of_image))
    return scores


def _similarity(candidate: _Caption, reference: _Caption) -> float:
    """From 0 to 1: the mean of the clipped cosines over n, less where the lengths differ."""
    cosines = []
    for weights, other in zip(candidate.weights, reference.weights, strict=True):
        norms = math.hypot(*weights.values()) * math.hypot(*other.values())
        shared = math.fsum(
            min(weight, other[gram]) * other[gram]
            for gram, weight in weights.items()
            if gram in other
        )
        cosines.append(shared / norms if norms else 0.0)
    penalty = math.exp(-((candidate.words - reference.words) ** 2) / (2 * _SIGMA**2))
    return penalty * math.fsum(cosines) / len(_ORDERS)


def _grams(text: str, n: int) -> list[_Gram]:
    words = normalised(text).split()
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def exact_match(questions: Sequence[Question], answers: Iterable[str]) -> Scores:
    """Shares of right answers. One is right if it equals the reference, letter by letter. There is at least one question."""
    pairs = zip(questions, answers, strict=True)
    return mean_scores(questions, [answer == question.reference for question, answer in pairs])


def mean_scores(questions: Sequence[Question], values: Sequence[float]) -> Scores:
    """Means of what each answer scores. There is at least one question."""
    of_kind: dict[str, list[float]] = {
        kind: [] for kind in sorted({question.kind for question in questions})
    }
    for question, value in zip(questions, values, strict=True):
        of_kind[question.kind].append(value)
    return Scores(
        score=math.fsum(values) / len(values),
        by_type={kind: math.fsum(some) / len(some) for kind, some in of_kind.items()},
        n_by_type={kind: len(some) for kind, some in of_kind.items()},
    )
