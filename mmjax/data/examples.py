"""Examples: what a source yields, what a template makes of captions, questions and conversations, and samples that cannot be used.

An example is text, special tokens and images in segments; where the loss is, is said where the text is written. Unusable samples are
counted by cause, and too many of them stop the run.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from absl import logging

from mmjax.errors import InputError


class SampleError(Exception):
    """One sample cannot be used. The loader counts it under its cause and goes on with the next one.

    Attributes:
        cause: a few words that many samples share ("corrupt image"), the key of the count.
        detail: what is wrong with this one, such as the path of its image.
    """

    def __init__(self, cause: str, detail: str = ""):
        super().__init__(cause, detail)
        self.cause = cause
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.cause}: {self.detail}" if self.detail else self.cause


@dataclass(frozen=True)
class Text:
    """Text as it is written, leading space included. With `loss`, the model learns to produce every token of it."""

    text: str
    loss: bool = False


@dataclass(frozen=True)
class Special:
    """One special token. It never comes from tokenised text, so no text can imitate it.

    Attributes:
        name: "bos" or "eos", whatever the tokenizer calls them, or the tokenizer's own name, such as "<|eot_id|>".
    """

    name: str
    loss: bool = False


@dataclass(frozen=True, eq=False)
class Image:
    """An image, not decoded yet: a path, the bytes of an image file, or uint8 pixels [h, w], [h, w, 3] or [h, w, 4]."""

    source: Path | str | bytes | np.ndarray


Segment = Text | Special | Image


@dataclass(frozen=True)
class Example:
    """One sample. Every continuation sees the prefix and itself, but no other continuation: several questions can share one image.

    Attributes:
        prefix: what the continuations share, such as (Image,). A plain conversation has an empty prefix and one continuation.
        continuations: texts (and images) that continue the prefix, each on its own.
        id: names the sample in messages, such as "easy_vqa/train/17".
        repeated: so many continuations, from the first, stand in every row that the example needs; the others stand in one of them. A
            caption that comes with each part of a long list of questions costs a few tokens and says more than they do. What has no room
            beside them stands in further rows, without them.
    """

    prefix: tuple[Segment, ...]
    continuations: tuple[tuple[Segment, ...], ...]
    id: str
    repeated: int = 0

    def segments(self) -> tuple[Segment, ...]:
        """The prefix and all continuations in one tuple, in order."""
        return (
            *self.prefix,
            *(segment for continuation in self.continuations for segment in continuation),
        )


Continuation = tuple[Segment, ...]
Role = Literal["system", "user", "assistant"]

CAPTION_PROMPT = "a short image description:"


@dataclass(frozen=True)
class Turn:
    """What one speaker says: texts and images. Their loss flags are ignored; the role decides.

    Attributes:
        loss: False: nothing of it is learned, although the assistant says it.
    """

    role: Role
    content: tuple[Text | Image, ...]
    loss: bool = True


class Template(ABC):
    """A text format. All that the assistant says carries loss, with the token that ends it; nothing else does.

    Whatever it is asked to write, it may raise SampleError: it cannot write this.
    """

    special_tokens: tuple[str, ...] = ()
    """Names of special tokens beyond bos and eos that the tokenizer must have."""
    stop: str = "eos"
    """Name of the special token that ends an answer: generation stops there."""

    def caption(self, text: str) -> Continuation:
        """A caption of the image in the prefix."""
        return self.question(CAPTION_PROMPT, text)

    @abstractmethod
    def question(self, question: str, answer: str) -> Continuation:
        """A question about the prefix, and its answer."""

    @abstractmethod
    def prompt(self, question: str) -> Continuation:
        """The question continuation up to its answer: what a model is given to answer. Nothing in it carries loss."""

    @abstractmethod
    def conversation(self, turns: Sequence[Turn]) -> Continuation:
        """Any number of turns in one continuation; a system turn at the beginning takes the place of the template's own.

        Where the user speaks last, the continuation ends where the assistant begins."""


def prompt_of(continuation: Continuation) -> Continuation:
    """A continuation up to the first token that carries loss: what a model is given to produce the rest."""
    for index, segment in enumerate(continuation):
        if not isinstance(segment, Image) and segment.loss:
            return continuation[:index]
    return continuation


def with_loss(content: Sequence[Text | Image]) -> Continuation:
    """Every text with loss."""
    return tuple(Text(part.text, loss=True) if isinstance(part, Text) else part for part in content)


def without_loss(content: Sequence[Text | Image]) -> Continuation:
    """Every text without loss."""
    return tuple(Text(part.text) if isinstance(part, Text) else part for part in content)


def unlearned(continuation: Continuation) -> Continuation:
    """The same, without loss."""
    return tuple(
        part if isinstance(part, Image) else replace(part, loss=False) for part in continuation
    )


def joined(continuation: Sequence[Segment]) -> Continuation:
    """Makes neighbouring texts with the same loss one text: they are tokenised together, as the words of one sentence."""
    found: list[Segment] = []
    for segment in continuation:
        match segment, found[-1:]:
            case Text(text, loss), [Text(before, loss_before)] if loss == loss_before:
                found[-1] = Text(before + text, loss)
            case _:
                found.append(segment)
    return tuple(found)


def led_by_space(content: Sequence[Text | Image]) -> tuple[Text | Image, ...]:
    """Puts one space before the first part where that is a text."""
    match content:
        case (Text(text), *rest):
            return (Text(" " + text.removeprefix(" ")), *rest)
    return tuple(content)


MINIMUM = 100
"""The share of skipped samples is not judged on fewer samples than these, unless there are no more."""
SHOWN = 5
"""Skipped samples of each cause that are named in the log."""


@dataclass
class Report:
    """What happened to some samples. A sample is one continuation of an example: a caption, a question, or a conversation.

    Attributes:
        seen: samples read, skipped ones included.
        causes: skipped samples by cause.
        details: what was wrong, once per image or record, for the log.
    """

    seen: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    details: list[tuple[str, str]] = field(default_factory=list)

    def skip(self, cause: str, detail: str, samples: int = 1) -> None:
        """Counts samples as skipped (they are counted as seen elsewhere)."""
        self.causes[cause] += samples
        if sum(known == cause for known, _ in self.details) < SHOWN:
            self.details.append((cause, detail))

    @property
    def skipped(self) -> int:
        """Number of skipped samples."""
        return self.causes.total()

    @property
    def examples(self) -> dict[str, str]:
        """The first skipped sample of each cause, and what is wrong with it."""
        return dict(reversed(self.details))


class Skips:
    """Sums up reports, and holds them against a budget.

    Attributes:
        total: samples seen and skipped.
        examples: the first skipped sample of each cause, and what is wrong with it.
    """

    def __init__(self, budget: float, what: str):
        """budget: the share of samples that may be skipped. what: names the data in messages."""
        self.total = Report()
        self.examples: dict[str, str] = {}
        self._budget = budget
        self._what = what
        self._logged: Counter[str] = Counter()

    def add(self, reports: Sequence[Report]) -> None:
        """Adds reports, and names the first skipped samples of each cause in the log."""
        for report in reports:
            self.total.seen += report.seen
            self.total.causes.update(report.causes)
            for cause, detail in report.details:
                self._logged[cause] += 1
                self.examples.setdefault(cause, detail)
                if self._logged[cause] <= SHOWN:
                    logging.warning("%s: skipped (%s) %s", self._what, cause, detail)

    def state(self) -> dict[str, Any]:
        """The counts and the examples, as JSON holds them."""
        return {
            "seen": self.total.seen,
            "causes": dict(self.total.causes),
            "examples": dict(self.examples),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from the counts of an earlier process, as `state` gave them."""
        self.total.seen = state.get("seen", 0)
        self.total.causes = Counter(state.get("causes", {}))
        self.examples = dict(state.get("examples", {}))

    def check(self, *, final: bool = False) -> None:
        """Raises InputError when the skipped share has passed the budget, once MINIMUM samples were seen or when there are no more."""
        seen, skipped = self.total.seen, self.total.skipped
        if skipped > self._budget * seen and (final or seen >= MINIMUM):
            raise InputError(
                f"{self._what}: {skipped:,} of {seen:,} samples cannot be used ({describe(self.total.causes)}), "
                f"more than skip_budget={self._budget:g} allows. Mend the data, or raise data.skip_budget. For example:\n"
                f"{listed(self.examples)}"
            )


def describe(causes: Mapping[str, int]) -> str:
    """The counts in words, the largest first."""
    return (
        ", ".join(f"{cause}: {count:,}" for cause, count in Counter(causes).most_common()) or "none"
    )


def listed(examples: Mapping[str, str]) -> str:
    """An example of each cause, a line each."""
    return "\n".join(f"  {cause}: {detail}" for cause, detail in examples.items())
