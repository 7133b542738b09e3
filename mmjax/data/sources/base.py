"""What every source of examples says of itself.

A source is one file in this folder: a config (a frozen dataclass derived from `SourceConfig`) and the `Source` that it opens. Nothing
outside the folder knows which kinds there are. This file is light, because every recipe imports it.
"""

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from mmjax.base.registry import Component
from mmjax.data.examples import Example, Image, SampleError, Template, Text
from mmjax.errors import InputError

Part = Literal["train", "holdout"]
SAMPLED = 4096  # examples whose images are looked at for changes


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

    def captioned(self, index: int) -> tuple[Path, str] | None:
        """The image file of an example and its caption; None if it lacks one of them. Errors as of `source[index]`.

        Only sources whose config has `captions` need it."""
        raise NotImplementedError(f"{type(self).__name__}.captioned")

    def input_files(self) -> Iterator[Path]:
        """Files that the examples come from, beside those that the config names: a run notices when one changes under it.

        By default the images of at most SAMPLED examples, evenly spaced. A source that reads others, such as records that lie in a package
        or in a folder, names them."""
        for index in range(0, len(self), max(1, -(-len(self) // SAMPLED))):
            try:
                segments = self[index].segments()
            except SampleError:
                continue
            for segment in segments:
                if isinstance(segment, Image) and isinstance(segment.source, str | Path):
                    yield Path(segment.source)

    def texts(self) -> Iterator[str]:
        """Every text of every usable example, each as it will be tokenised: what a tokenizer is built from."""
        for index in range(len(self)):
            try:
                example = self[index]
            except SampleError:
                continue  # the loader meets it again, and counts it
            yield from (segment.text for segment in example.segments() if isinstance(segment, Text))


class SourceConfig(Component):
    """Where a stage's examples come from.

    Attributes:
        kind: its name in a config, of the type Literal["name"].
        weight: rows of several sources are mixed in proportion to their weights. A field of every kind, 1.0 by default.
        conversations: an image stands within what the user says, not in front of everything.
        captions: captions that it holds out can be scored: the source has `captioned`.
        holdout_by: what decides which examples are held out. A kind that gives a choice has it as a field.
    """

    package: ClassVar[str] = "mmjax.data.sources"
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    kind: str
    weight: float
    conversations: ClassVar[bool] = False
    captions: ClassVar[bool] = False
    holdout_by: str = "position"

    @property
    def reads(self) -> str:
        """The name of what it reads, such as a path: sources with the same one hold the same examples. "": not known."""
        return ""

    def open(self, template: Template, *, holdout: int = 0, part: Part = "train") -> Source:
        """Opens the source.

        Args:
            template: how its captions, questions and conversations become text.
            holdout: examples that are kept from training: those at its end, or as the config says.
            part: "train": all but those; "holdout": those alone.

        Raises:
            InputError: a file, folder or package is missing, or the config asks for what the data do not have.
        """
        raise NotImplementedError(f"{type(self).__name__}.open")


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """A sample that cannot be used says its name: SampleErrors of the context have it before what is wrong."""
    try:
        yield
    except SampleError as error:
        detail = f"{name}: {error.detail}" if error.detail else name
        raise SampleError(error.cause, detail) from None


def split_part(count: int, holdout: int, part: Part, what: str) -> range:
    """The indices of a part: the last `holdout` of `count` examples, or those before. Raises InputError if none are left to train on."""
    if holdout < 0 or holdout >= count:
        raise InputError(
            f"holdout must be less than the {count} examples of {what}, and not negative, but it is {holdout}."
        )
    return range(count - holdout) if part == "train" else range(count - holdout, count)


def check_index(index: int, count: int) -> int:
    """The index itself, or IndexError: negative indices are not counted from the end, a loader that has one is wrong."""
    if not 0 <= index < count:
        raise IndexError(f"example {index} of {count}")
    return index
