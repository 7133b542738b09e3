"""What every source of examples has in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal

from mmjax.data.examples import Example, SampleError, Text
from mmjax.errors import InputError

Part = Literal["train", "holdout"]


class Source(ABC):
    """Examples by index, in a fixed order. Opening one checks what can be checked without reading all of it.

    A source can be sent to another process and read from several threads.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples, unusable ones included."""

    @abstractmethod
    def __getitem__(self, index: int) -> Example:
        """Example `index`, images not decoded. Raises SampleError for an unusable one and IndexError outside 0 .. len - 1."""

    def texts(self) -> Iterator[str]:
        """Every text of every usable example, each as it will be tokenised: what a tokenizer is built from."""
        for index in range(len(self)):
            try:
                example = self[index]
            except SampleError:
                continue  # the loader meets it again, and counts it
            yield from (segment.text for segment in example.segments() if isinstance(segment, Text))


def split_part(count: int, holdout: int, part: Part, what: str) -> range:
    """The indices of a part: the last `holdout` of `count` examples, or those before. Raises InputError if none are left to train on."""
    if holdout < 0 or holdout >= count:
        raise InputError(
            f"{what} has {count} examples; holdout={holdout} leaves none to train on (or is negative)."
        )
    return range(count - holdout) if part == "train" else range(count - holdout, count)


def check_index(index: int, count: int) -> int:
    """The index itself, or IndexError: negative indices are not counted from the end, a loader that has one is wrong."""
    if not 0 <= index < count:
        raise IndexError(f"example {index} of {count}")
    return index
