"""What a template is: how captions, questions and conversations become segments, and where the loss is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mmjax.data.examples import Image, Segment, Text

Branch = tuple[Segment, ...]
Role = Literal["system", "user", "assistant"]

CAPTION_PROMPT = "a short image description:"


@dataclass(frozen=True)
class Turn:
    """What one speaker says: texts and pictures. Their loss flags are ignored; the role decides."""

    role: Role
    content: tuple[Text | Image, ...]


class Template(ABC):
    """A text format. All that the assistant says carries loss, with the token that ends it; nothing else does."""

    special_tokens: tuple[str, ...] = ()
    """Names of special tokens beyond bos and eos that the tokenizer must have."""
    stop: str = "eos"
    """Name of the special token that ends an answer: generation stops there."""

    def caption(self, text: str) -> Branch:
        """A caption of the picture in the prefix."""
        return self.question(CAPTION_PROMPT, text)

    @abstractmethod
    def question(self, question: str, answer: str) -> Branch:
        """A question about the prefix, and its answer."""

    @abstractmethod
    def prompt(self, question: str) -> Branch:
        """The question branch up to its answer: what a model is given to answer. Nothing in it carries loss."""

    @abstractmethod
    def conversation(self, turns: Sequence[Turn]) -> Branch:
        """Any number of turns in one branch; a system turn at the beginning takes the place of the template's own.

        Where the user speaks last, the branch ends where the assistant begins."""


def prompt_of(branch: Branch) -> Branch:
    """A branch up to the first token that carries loss: what a model is given to produce the rest."""
    for index, segment in enumerate(branch):
        if not isinstance(segment, Image) and segment.loss:
            return branch[:index]
    return branch


def with_loss(content: Sequence[Text | Image]) -> Branch:
    """Every text with loss."""
    return tuple(Text(part.text, loss=True) if isinstance(part, Text) else part for part in content)


def without_loss(content: Sequence[Text | Image]) -> Branch:
    """Every text without loss."""
    return tuple(Text(part.text) if isinstance(part, Text) else part for part in content)


def joined(branch: Sequence[Segment]) -> Branch:
    """Makes neighbouring texts with the same loss one text: they are tokenised together, as the words of one sentence."""
    joined: list[Segment] = []
    for segment in branch:
        match segment, joined[-1:]:
            case Text(text, loss), [Text(before, loss_before)] if loss == loss_before:
                joined[-1] = Text(before + text, loss)
            case _:
                joined.append(segment)
    return tuple(joined)


def led_by_space(content: Sequence[Text | Image]) -> tuple[Text | Image, ...]:
    """Puts one space before the first part where that is a text."""
    match content:
        case (Text(text), *rest):
            return (Text(" " + text.removeprefix(" ")), *rest)
    return tuple(content)
