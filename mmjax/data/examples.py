"""What a source yields: one sample as segments of text, special tokens and pictures, with the loss marked where the text is written."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


class SampleError(Exception):
    """One sample cannot be used. The loader counts it under its cause and goes on with the next one.

    Attributes:
        cause: a few words that many samples share ("corrupt image"), the key of the count.
        detail: what is wrong with this one, such as the path of its picture.
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
    """A picture, not decoded yet: a path, the bytes of an image file, or uint8 pixels [h, w], [h, w, 3] or [h, w, 4]."""

    source: Path | str | bytes | np.ndarray


Segment = Text | Special | Image


@dataclass(frozen=True)
class Example:
    """One sample. Every branch sees the prefix and itself, but no other branch: several questions can share one picture.

    Attributes:
        prefix: what the branches share, such as (Image,). A plain conversation has an empty prefix and one branch.
        branches: texts (and pictures) that continue the prefix, each on its own.
        id: names the sample in messages, such as "easy_vqa/train/17".
        repeated: so many branches, from the first, stand in every row that the example needs; the others stand in one of them. A caption
            that comes with each part of a long list of questions costs a few tokens and says more than they do. What has no room beside
            them stands in further rows, without them.
    """

    prefix: tuple[Segment, ...]
    branches: tuple[tuple[Segment, ...], ...]
    id: str
    repeated: int = 0

    def segments(self) -> tuple[Segment, ...]:
        """The prefix and all branches in one tuple, in order."""
        return (*self.prefix, *(segment for branch in self.branches for segment in branch))
