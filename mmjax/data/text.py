"""Segments to tokens: what of an example becomes input, and which tokens carry loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmjax.data.examples import Image, Segment, Special, Text
from mmjax.data.tokenizer import Tokenizer
from mmjax.typing import NO_TARGET


@dataclass(frozen=True)
class Piece:
    """The tokens of a prefix or of a branch.

    Attributes:
        tokens: [t] int32; an image is a run of `visual_tokens` times the tokenizer's image id.
        loss: [t] bool, the tokens that the model learns to produce.
        images: (offset of its first visual token, image), in order.
    """

    tokens: np.ndarray
    loss: np.ndarray
    images: tuple[tuple[int, Image], ...]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def targets(self) -> np.ndarray:
        """[t] int32: at each position the next token, where that one carries loss, else -1. Nothing follows the last position."""
        targets = np.full(len(self.tokens), NO_TARGET, np.int32)
        targets[:-1] = np.where(self.loss[1:], self.tokens[1:], NO_TARGET)
        return targets

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, targets) of a branch: without its last token, which nothing follows and which therefore serves as a target only.

        The last token stays where it belongs to a picture: its visual tokens are taken whole.
        """
        targets = self.targets
        if not len(self.tokens) or self._ends_in_image:
            return self.tokens, targets
        return self.tokens[:-1], targets[:-1]

    @property
    def _ends_in_image(self) -> bool:
        if not self.images:
            return False
        offset = self.images[-1][0]
        return bool((self.tokens[offset:] == self.tokens[offset]).all())


def tokenise(segments: Sequence[Segment], tokenizer: Tokenizer, visual_tokens: int, *, marks: bool = False) -> Piece:
    """Tokenises each segment once and on its own: labels follow from where a segment stands, never from searching in the tokens.

    A prompt therefore has the same tokens with and without its answer behind it.

    Args:
        segments: a prefix or a branch.
        visual_tokens: L, placeholders per image.
        marks: special tokens carry loss wherever they stand, but the first one of a text does not.
    """
    tokens: list[int] = []
    loss: list[bool] = []
    images: list[tuple[int, Image]] = []
    for segment in segments:
        match segment:
            case Text(text, has_loss):
                ids = tokenizer.encode(text)
            case Special(name, has_loss):
                ids, has_loss = [_special(name, tokenizer)], has_loss or (marks and name != "bos")
            case Image():
                images.append((len(tokens), segment))
                ids, has_loss = [tokenizer.image] * visual_tokens, False
        tokens.extend(ids)
        loss.extend([has_loss] * len(ids))
    return Piece(np.array(tokens, np.int32), np.array(loss, bool), tuple(images))


def _special(name: str, tokenizer: Tokenizer) -> int:
    if name == "bos":
        return tokenizer.bos
    if name == "eos":
        return tokenizer.eos
    return tokenizer.special(name)
