"""What every task says of itself.

A task is one file in this folder: a class derived from `Task`, and an object of it that the file names TASK. It gives questions
about images with their reference answers, and says how answers are scored and what one would answer without looking.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mmjax.data.examples import Example, Image
from mmjax.data.text.tokenizer import Tokenizer
from mmjax.evaluation.progress import ScoringProgress
from mmjax.inference.decode import VLMDef
from mmjax.recipe.recipe import DataConfig, EvaluationConfig, Recipe, Stage
from mmjax.typing import Params

Split = Literal["test", "holdout"]


@dataclass(frozen=True)
class Question:
    """A question with its reference answer.

    Attributes:
        kind: the type that it is scored under, such as "shape".
        others: more references that are as good, for tasks that know some.
    """

    text: str
    reference: str
    kind: str
    others: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        """All of them."""
        return (self.reference, *self.others)


@dataclass(frozen=True)
class ImageQuestions:
    """An image with its questions.

    Attributes:
        example: the image as prefix, and one continuation per question, up to where the answer begins.
        path: of the image file.
        questions: in the order of the continuations.
    """

    example: Example
    path: str
    questions: tuple[Question, ...]

    @property
    def image(self) -> Image:
        """The image itself."""
        return next(segment for segment in self.example.prefix if isinstance(segment, Image))


@dataclass(frozen=True)
class Scores:
    """Means over questions of what their answers score: shares of right answers where an answer is right or wrong.

    Attributes:
        score: over all questions.
        by_type, n_by_type: mean and number of each type, types in alphabetical order.
    """

    score: float
    by_type: dict[str, float]
    n_by_type: dict[str, int]

    @property
    def n(self) -> int:
        """Number of questions."""
        return sum(self.n_by_type.values())


@dataclass(frozen=True, eq=False)
class EvaluatedModel:
    """The model that is scored.

    Attributes:
        stage: that trained it.
        batch_size: rows that are computed at once.
        should_stop: asked between batches; progress: shows how far a part of the scoring is.
    """

    stage: Stage
    model_def: VLMDef
    params: Params
    tokenizer: Tokenizer
    batch_size: int
    should_stop: Callable[[], bool] = lambda: False
    progress: ScoringProgress = field(default_factory=ScoringProgress)


class Task(ABC):
    """A set of questions with their reference answers."""

    name: str

    def problems(self, recipe: Recipe) -> Iterator[str]:
        """Why the model of a recipe cannot be scored on this task, as far as the settings show; no file is read."""
        yield from ()

    @abstractmethod
    def images(
        self, data: DataConfig, split: Split, tokenizer: Tokenizer | None = None
    ) -> Sequence[ImageQuestions]:
        """All images of a split.

        Args:
            data: of the stage whose model answers: its template words the prompts, its `holdout` says what "holdout" means.
            split: "test": the official test split. "holdout": what was held out of training, to tune on.
            tokenizer: of the model, which may bring the template along.

        Raises:
            InputError: the data are missing, or nothing is held out.
        """

    def answer_tokens(self, settings: EvaluationConfig) -> int:
        """After how many tokens an answer is cut."""
        return settings.max_new_tokens

    @abstractmethod
    def question_only_baseline(
        self, data: DataConfig, split: Split, questions: Sequence[Question]
    ) -> list[str]:
        """Answers given from the questions alone, learned on the training data (of which the holdout is no part when it is scored)."""

    @abstractmethod
    def score(self, questions: Sequence[Question], answers: Sequence[str]) -> Scores:
        """Scores answers, one to each question."""

    def details(
        self, evaluated: EvaluatedModel, images: Sequence[ImageQuestions]
    ) -> dict[str, Any]:
        """What the result says beside the scores of the answers; "metric", if there, names what `score` is, which else is a share.

        Raises:
            Preempted: a stop was requested.
        """
        return {}
