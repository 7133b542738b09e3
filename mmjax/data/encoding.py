"""Prefixes and branches as they stand in a row: input tokens, targets and pictures, each text tokenised once."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from mmjax.data.examples import Image, Segment
from mmjax.data.text import tokenise
from mmjax.data.tokenizer import Tokenizer
from mmjax.typing import NO_TARGET

_KEPT = 16_384
"""Pieces kept in memory: all of a set with few distinct texts, and under a hundred megabytes of one with long ones."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """One segment of a row.

    Attributes:
        tokens, targets: [t] int32, as in Batch.
        images: (offset of its first visual token, picture), in order.
        text: how many of the tokens are no visual ones.
        supervised: how many positions have a target.
    """

    tokens: np.ndarray
    targets: np.ndarray
    images: tuple[tuple[int, Image], ...]
    text: int
    supervised: int


class Encoder:
    """Encodes segments; pieces without pictures are remembered. It can be sent to another process and used from several threads."""

    def __init__(self, tokenizer: Tokenizer, visual_tokens: int, marks: bool = False):
        """visual_tokens: L, placeholders per picture. marks: as in `tokenise`."""
        self.tokenizer = tokenizer
        self.visual_tokens = visual_tokens
        self.marks = marks
        self._remembered = lru_cache(maxsize=_KEPT)(self._encode)

    def prefix(self, segments: tuple[Segment, ...]) -> Encoded:
        """A prefix, whole: what a branch begins with is no target, as branches share what stands before."""
        return self._lookup(segments, True)

    def branch(self, segments: tuple[Segment, ...]) -> Encoded:
        """A branch, without its last token where that is only a target."""
        return self._lookup(segments, False)

    def _lookup(self, segments: tuple[Segment, ...], whole: bool) -> Encoded:
        if any(isinstance(segment, Image) for segment in segments):
            return self._encode(segments, whole)  # would be held in memory with its picture, and never be met again
        return self._remembered(segments, whole)

    def _encode(self, segments: tuple[Segment, ...], whole: bool) -> Encoded:
        piece = tokenise(segments, self.tokenizer, self.visual_tokens, marks=self.marks)
        tokens, targets = (piece.tokens, piece.targets) if whole else piece.inputs()
        text = len(tokens) - len(piece.images) * self.visual_tokens
        return Encoded(tokens, targets, piece.images, text, int(np.count_nonzero(targets != NO_TARGET)))

    def __getstate__(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer, "visual_tokens": self.visual_tokens, "marks": self.marks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
