"""What a task is: questions about pictures, their true answers, and what one would answer without looking."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from mmjax.data.examples import Example, Image
from mmjax.data.tokenizer import Tokenizer
from mmjax.recipe import DataConfig

Split = Literal["test", "holdout"]


@dataclass(frozen=True)
class Question:
    """A question with its official answer.

    Attributes:
        kind: the type that it is scored under, such as "shape".
    """

    text: str
    truth: str
    kind: str


@dataclass(frozen=True)
class Picture:
    """A picture with its questions.

    Attributes:
        example: the picture as prefix, and one branch per question, up to where the answer begins.
        path: of the picture file.
        questions: in the order of the branches.
    """

    example: Example
    path: str
    questions: tuple[Question, ...]

    @property
    def image(self) -> Image:
        """The picture itself."""
        return next(segment for segment in self.example.prefix if isinstance(segment, Image))


class Task(Protocol):
    """A set of questions with their answers."""

    name: str

    def pictures(self, data: DataConfig, split: Split, tokenizer: Tokenizer | None = None) -> Sequence[Picture]:
        """All pictures of a split.

        Args:
            data: of the stage whose model answers: its template words the prompts, its `holdout` says what "holdout" means.
            split: "test": the official test split. "holdout": what was held out of training, to tune on.
            tokenizer: of the model, which may bring the template along.

        Raises:
            InputError: the data are missing, or nothing is held out.
        """
        ...

    def blind(self, data: DataConfig, split: Split, questions: Sequence[Question]) -> list[str]:
        """Answers given from the questions alone, learned on the training data (of which the holdout is no part when it is scored)."""
        ...
