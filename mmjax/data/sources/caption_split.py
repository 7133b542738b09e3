"""Splits examples by caption, so that no caption and no image stands both in training and in what is held out.

Examples that share a caption (see `normalised`) or an image make a group, and groups stay whole. In the order of a digest of their
captions they are held out, as long as that makes no more than `holdout` examples; a group that is larger than what is missing is skipped.
So there are exactly `holdout` examples, or fewer where only larger groups are left. The split depends on the captions alone.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmjax.data.sources.base import Part, split_part
from mmjax.errors import InputError

_DIGEST = 16  # bytes: what is kept of a caption or a path in memory


@dataclass(frozen=True)
class CaptionKey:
    """What the split has to know of an example: digests of its caption and of the path of its image, or None where it has none."""

    caption: bytes | None
    image: bytes | None

    @classmethod
    def of(cls, caption: str | None, image: str | None) -> "CaptionKey":
        def digest(text: str | None) -> bytes | None:
            if text is None:
                return None
            return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_DIGEST]

        return cls(digest(caption if caption is None else normalised(caption)), digest(image))


def normalised(text: str) -> str:
    """What equal captions have in common: words and signs in lower case, with one space for the white space and punctuation between."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(
        "".join(
            " " if unicodedata.category(letter).startswith("P") else letter for letter in folded
        ).split()
    )


def split_by_caption(keys: Sequence[CaptionKey], holdout: int, part: Part, what: str) -> np.ndarray:
    """The indices of a part.

    Args:
        keys: of all examples. Those without a caption are trained on, unless their image is held out.
        what: the name of the source.

    Returns:
        [n] int64. "train": in order. "holdout": group by group in the order of the digests, so that the first of them are no special ones.

    Raises:
        InputError: holdout leaves nothing to train on, or no group is small enough to be held out.
    """
    split_part(len(keys), holdout, part, what)
    held: list[int] = []
    for group in _groups_in_order(keys) if holdout else ():
        if len(group) <= holdout - len(held):
            held.extend(group)
    if holdout and not held:
        raise InputError(
            f"{what} cannot be split by its captions: it has none, or those that belong together, because captions or images are equal, "
            f"are more than holdout={holdout} each."
        )
    found = np.array(held, np.int64)
    return found if part == "holdout" else np.setdiff1d(np.arange(len(keys)), found)


def _groups_in_order(keys: Sequence[CaptionKey]) -> list[list[int]]:
    """The groups that have a caption, by the smallest digest of their captions."""
    parents = list(range(len(keys)))  # towards one example that stands for the group

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    first: dict[tuple[str, bytes], int] = {}
    for index, key in enumerate(keys):
        for kind, value in (("caption", key.caption), ("image", key.image)):
            if value is not None:
                parents[root(index)] = root(first.setdefault((kind, value), index))
    groups: dict[int, list[int]] = {}
    for index in range(len(keys)):
        groups.setdefault(root(index), []).append(index)
    keyed = []
    for group in groups.values():
        captions = [caption for index in group if (caption := keys[index].caption) is not None]
        if captions:
            keyed.append((min(captions), group))
    return [group for _, group in sorted(keyed)]
