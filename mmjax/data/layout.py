"""One packed row: where segments, positions, targets and pictures go."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from mmjax.data.encoding import Encoded
from mmjax.data.examples import Image, SampleError
from mmjax.data.images import Resize
from mmjax.errors import InputError
from mmjax.typing import NO_IMAGE, NO_TARGET, PADDING_SEGMENT, Batch, Bool, Int, UInt8

LoadPicture = Callable[[Image], np.ndarray]

CHANGED = "a data file was changed while the run was reading it. Start the run again."


@dataclass(frozen=True)
class RowShape:
    """The static shape of rows.

    Attributes:
        text_length: text tokens that a row has room for.
        images_per_row: I. visual_tokens: L. image_size: h and w.
        pad: the token of padding.
        resize: how a picture becomes a square (see `load_image`).
    """

    text_length: int
    images_per_row: int
    visual_tokens: int
    image_size: int
    pad: int
    resize: Resize = "stretch"

    @property
    def length(self) -> int:
        """T, tokens per row: room for all text and for all visual tokens."""
        return self.text_length + self.images_per_row * self.visual_tokens


@dataclass(frozen=True, eq=False)
class Row:
    """One row of a Batch; the fields mean the same. `visual_tokens` is L."""

    tokens: Int[np.ndarray, " T"]
    targets: Int[np.ndarray, " T"]
    segments: Int[np.ndarray, " T"]
    prefixes: Int[np.ndarray, " T"]
    positions: Int[np.ndarray, " T"]
    images: UInt8[np.ndarray, "I h w 3"]
    image_mask: Bool[np.ndarray, " I"]
    image_slot: Int[np.ndarray, " T"]
    visual_tokens: int

    @classmethod
    def empty(cls, shape: RowShape) -> "Row":
        """A row of padding: it adds nothing to a loss and nothing to the count of its targets."""

        def filled(value: int) -> np.ndarray:
            return np.full(shape.length, value, np.int32)

        size = shape.image_size
        return cls(
            tokens=filled(shape.pad),
            targets=filled(NO_TARGET),
            segments=filled(PADDING_SEGMENT),
            prefixes=filled(PADDING_SEGMENT),
            positions=filled(0),
            images=np.zeros((shape.images_per_row, size, size, 3), np.uint8),
            image_mask=np.zeros(shape.images_per_row, bool),
            image_slot=filled(NO_IMAGE),
            visual_tokens=shape.visual_tokens,
        )


def stack(rows: Sequence[Row]) -> Batch:
    """Rows of one shape as a batch."""
    return Batch(**{field.name: np.stack([getattr(row, field.name) for row in rows]) for field in fields(Batch)})


class RowWriter:
    """Writes segments into an empty row, one after the other.

    Attributes:
        row: the row; complete at any time.
    """

    def __init__(self, shape: RowShape, load: LoadPicture):
        """load: gives the pixels of a picture, or raises SampleError."""
        self.row = Row.empty(shape)
        self._shape = shape
        self._load = load
        self._used = 0
        self._pictures = 0
        self._segment = 0

    def write(self, piece: Encoded, *, prefix: int = 0, start: int = 0, blind: bool = False) -> tuple[int, SampleError | None]:
        """Adds a segment.

        Args:
            piece: what to write.
            prefix: the segment that this one also sees, or 0.
            start: position of its first token.
            blind: leave out all targets: what the segment depends on is missing.

        Returns:
            The number of the segment, and the first error of a picture in it. Such a picture's slot stays masked, and nothing after it in
            the segment has a target.
        """
        where = slice(self._used, self._used + len(piece.tokens))
        if where.stop > self._shape.length:
            raise InputError(f"A row is longer than planned: {CHANGED}")
        self._used = where.stop
        self._segment += 1
        row = self.row
        row.tokens[where] = piece.tokens
        row.segments[where] = self._segment
        row.prefixes[where] = prefix
        row.positions[where] = np.arange(start, start + len(piece.tokens))
        if not blind:
            row.targets[where] = piece.targets
        problem = None
        for offset, image in piece.images:
            error = self._place(image, where.start + offset)
            if error is not None and problem is None:
                problem = error
                row.targets[where.start + offset : where.stop] = NO_TARGET
        return self._segment, problem

    def _place(self, image: Image, offset: int) -> SampleError | None:
        """Puts a picture into the next slot and its visual tokens at `offset`."""
        slot, tokens = self._pictures, self._shape.visual_tokens
        if slot == self._shape.images_per_row:
            raise InputError(f"A row has more pictures than planned: {CHANGED}")
        self._pictures += 1
        self.row.image_slot[offset : offset + tokens] = np.arange(slot * tokens, (slot + 1) * tokens)
        try:
            self.row.images[slot] = self._load(image)
        except SampleError as error:
            return error
        self.row.image_mask[slot] = True
        return None
