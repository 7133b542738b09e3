"""One packed row: where segments, positions, targets and images go.

A packed row made visible: what the model reads, which tokens it sees from where, and which tokens carry loss.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from mmjax.data.examples import Image, SampleError
from mmjax.data.images.decode import Resize
from mmjax.data.text.tokenizer import TokenizedSegment, Tokenizer
from mmjax.errors import InputError
from mmjax.typing import NO_IMAGE, NO_TARGET, PADDING_SEGMENT, Batch, Bool, Int, UInt8

LoadImage = Callable[[Image], np.ndarray]

CHANGED = "a data file was changed while the run was reading it. Start the run again."


@dataclass(frozen=True)
class RowShape:
    """The static shape of rows.

    Attributes:
        text_length: text tokens that a row has room for.
        images_per_row: I. visual_tokens: L. image_size: h and w.
        pad: the token of padding.
        resize: how an image becomes a square (see `load_image`).
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
    segment_ids: Int[np.ndarray, " T"]
    prefix_segment_ids: Int[np.ndarray, " T"]
    positions: Int[np.ndarray, " T"]
    images: UInt8[np.ndarray, "I h w 3"]
    image_mask: Bool[np.ndarray, " I"]
    visual_embedding_index: Int[np.ndarray, " T"]
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
            segment_ids=filled(PADDING_SEGMENT),
            prefix_segment_ids=filled(PADDING_SEGMENT),
            positions=filled(0),
            images=np.zeros((shape.images_per_row, size, size, 3), np.uint8),
            image_mask=np.zeros(shape.images_per_row, bool),
            visual_embedding_index=filled(NO_IMAGE),
            visual_tokens=shape.visual_tokens,
        )


def stack(rows: Sequence[Row]) -> Batch:
    """Rows of one shape as a batch."""
    return Batch(
        **{
            field.name: np.stack([getattr(row, field.name) for row in rows])
            for field in fields(Batch)
        }
    )


class RowWriter:
    """Writes segments into an empty row, one after the other.

    Attributes:
        row: the row; complete at any time.
    """

    def __init__(self, shape: RowShape, load: LoadImage):
        """load: gives the pixels of an image, or raises SampleError."""
        self.row = Row.empty(shape)
        self._shape = shape
        self._load = load
        self._used = 0
        self._images = 0
        self._segment = 0

    def write(
        self,
        piece: TokenizedSegment,
        *,
        prefix: int = 0,
        start: int = 0,
        drop_targets: bool = False,
    ) -> tuple[int, SampleError | None]:
        """Adds a segment.

        Args:
            piece: what to write.
            prefix: the segment that this one also sees, or 0.
            start: position of its first token.
            drop_targets: leave out all targets: what the segment depends on is missing.

        Returns:
            The number of the segment, and the first error of an image in it. Such an image's slot stays masked, and nothing after it in
            the segment has a target.
        """
        where = slice(self._used, self._used + len(piece.tokens))
        if where.stop > self._shape.length:
            raise InputError(f"A row is longer than planned: {CHANGED}")
        self._used = where.stop
        self._segment += 1
        row = self.row
        row.tokens[where] = piece.tokens
        row.segment_ids[where] = self._segment
        row.prefix_segment_ids[where] = prefix
        row.positions[where] = np.arange(start, start + len(piece.tokens))
        if not drop_targets:
            row.targets[where] = piece.targets
        problem = None
        for offset, image in piece.images:
            error = self._place(image, where.start + offset)
            if error is not None and problem is None:
                problem = error
                row.targets[where.start + offset : where.stop] = NO_TARGET
        return self._segment, problem

    def _place(self, image: Image, offset: int) -> SampleError | None:
        """Puts an image into the next slot and its visual tokens at `offset`."""
        slot, tokens = self._images, self._shape.visual_tokens
        if slot == self._shape.images_per_row:
            raise InputError(f"A row has more images than planned: {CHANGED}")
        self._images += 1
        self.row.visual_embedding_index[offset : offset + tokens] = np.arange(
            slot * tokens, (slot + 1) * tokens
        )
        try:
            self.row.images[slot] = self._load(image)
        except SampleError as error:
            return error
        self.row.image_mask[slot] = True
        return None


Kind = Literal["context", "special", "visual", "target"]


@dataclass(frozen=True)
class PreviewToken:
    """Something to show: a token, or the visual tokens of one image."""

    text: str
    kind: Kind


@dataclass(frozen=True)
class Segment:
    """One segment of a row, decoded."""

    number: int
    prefix: int
    first: int
    last: int
    parts: tuple[PreviewToken, ...]

    @property
    def title(self) -> str:
        """Its number, what it sees besides itself, and its positions."""
        sees = f" sees {self.prefix}" if self.prefix else ""
        return f"segment {self.number}{sees}, positions {self.first}-{self.last}"


def preview(row: Row, tokenizer: Tokenizer) -> str:
    """The row as plain text, a line per segment. Each token that carries loss stands in [brackets]; special tokens in <angles>."""
    segments = list(decode(row, tokenizer))
    width = max((len(segment.title) for segment in segments), default=0)
    lines = [
        _headline(row),
        *(f"{segment.title:<{width}} | {_plain(segment.parts)}" for segment in segments),
    ]
    return "\n".join(lines)


def save_preview(row: Row, tokenizer: Tokenizer, path: Path | str) -> None:
    """Draws the row as a PNG file: its images as the encoder reads them, beside its segments. A tint marks the tokens that carry loss."""
    segments = list(decode(row, tokenizer))
    images = [
        pixels if shown else None for pixels, shown in zip(row.images, row.image_mask, strict=True)
    ]
    _Drawing().draw(_headline(row), images, segments).save(path, format="PNG")


def decode(row: Row, tokenizer: Tokenizer) -> Iterator[Segment]:
    """The segments of a row. Each target is shown where the token stands that it should be: what one reads is what the loss is taken on."""
    count = int(row.segment_ids.max(initial=PADDING_SEGMENT))
    for number in range(1, count + 1):
        where = np.flatnonzero(row.segment_ids == number)
        positions = row.positions[where]
        parts = tuple(_parts(row, where, tokenizer))
        yield Segment(
            number,
            int(row.prefix_segment_ids[where[0]]),
            int(positions[0]),
            int(positions[-1]),
            parts,
        )


def _parts(row: Row, where: np.ndarray, tokenizer: Tokenizer) -> Iterator[PreviewToken]:
    predicted = NO_TARGET
    for index in where:
        slot = int(row.visual_embedding_index[index])
        if slot == NO_IMAGE:
            yield (
                _context(int(row.tokens[index]), tokenizer)
                if predicted == NO_TARGET
                else PreviewToken(_token(predicted, tokenizer), "target")
            )
        elif slot % row.visual_tokens == 0:
            yield _image(row, slot // row.visual_tokens)
        predicted = int(row.targets[index])
    if predicted != NO_TARGET:
        yield PreviewToken(
            _token(predicted, tokenizer), "target"
        )  # the last target is not among the inputs


def _image(row: Row, number: int) -> PreviewToken:
    note = "" if row.image_mask[number] else ", unreadable and masked"
    return PreviewToken(f"<image {number}: {row.visual_tokens} visual tokens{note}>", "visual")


def _context(token: int, tokenizer: Tokenizer) -> PreviewToken:
    text = _token(token, tokenizer)
    return PreviewToken(text, "context" if tokenizer.decode([token]) else "special")


def _token(token: int, tokenizer: Tokenizer) -> str:
    names = {
        tokenizer.pad: "<pad>",
        tokenizer.bos: "<bos>",
        tokenizer.eos: "<eos>",
        tokenizer.image: "<image>",
    }  # eos may be the padding too
    return tokenizer.decode([token]) or names.get(token, f"<{token}>")


def _plain(parts: tuple[PreviewToken, ...]) -> str:
    return "".join(
        f"[{part.text}]" if part.kind == "target" else part.text for part in parts
    ).replace("\n", "\\n")


def _headline(row: Row) -> str:
    filled = int(np.count_nonzero(row.segment_ids != PADDING_SEGMENT))
    return (
        f"{filled} of {len(row.tokens)} tokens, {int(row.segment_ids.max(initial=0))} segments, "
        f"{int(row.image_mask.sum())} of {len(row.image_mask)} images, {int(np.count_nonzero(row.targets != NO_TARGET))} targets"
    )


class _Drawing:
    """Lays a preview out: images in a column at the left, segments as lines of tinted tokens at the right."""

    WIDTH, SIDE, MARGIN, LINE = 1100, 224, 16, 24
    INK: ClassVar[dict[Kind, str]] = {
        "context": "#24292f",
        "special": "#8c959f",
        "visual": "#0550ae",
        "target": "#0a5a1e",
    }
    TINT: ClassVar[dict[Kind, str]] = {"visual": "#ddf4ff", "target": "#aceebb"}

    def __init__(self) -> None:
        self._font = ImageFont.load_default(size=16)
        self._small = ImageFont.load_default(size=13)
        self._left = 2 * self.MARGIN + self.SIDE

    def draw(
        self, headline: str, images: list[np.ndarray | None], segments: list[Segment]
    ) -> Pillow.Image:
        """The drawing, as high as it needs to be."""
        height = self._paint(None, headline, segments)
        column = self.MARGIN + len(images) * (self.SIDE + self.MARGIN)
        canvas = Pillow.new("RGB", (self.WIDTH, max(height, column)), "white")
        self._paint(ImageDraw.Draw(canvas), headline, segments)
        for slot, pixels in enumerate(images):
            corner = (self.MARGIN, self.MARGIN + slot * (self.SIDE + self.MARGIN))
            canvas.paste(self._image(pixels), corner)
        return canvas

    def _image(self, pixels: np.ndarray | None) -> Pillow.Image:
        size = (self.SIDE, self.SIDE)
        if pixels is not None:
            return Pillow.fromarray(pixels).resize(size, Pillow.Resampling.NEAREST)
        empty = Pillow.new("RGB", size, "#eaeef2")
        ImageDraw.Draw(empty).text(
            (self.SIDE // 2, self.SIDE // 2), "no image", "#57606a", self._small, anchor="mm"
        )
        return empty

    def _paint(
        self, ink: ImageDraw.ImageDraw | None, headline: str, segments: list[Segment]
    ) -> int:
        """Paints the texts (or only measures, without ink), and returns the height that they take."""
        y = self.MARGIN
        if ink:
            ink.text((self._left, y), headline, "#24292f", self._font)
        y += self.LINE + self.MARGIN // 2
        for segment in segments:
            if ink:
                ink.text((self._left, y), segment.title, "#57606a", self._small)
            y = self._paint_parts(ink, segment.parts, y + self.LINE - 4) + self.LINE + 6
        return y + self.MARGIN

    def _paint_parts(
        self, ink: ImageDraw.ImageDraw | None, parts: tuple[PreviewToken, ...], y: int
    ) -> int:
        """Paints parts from the left, with line breaks, and returns the top of the last line."""
        x = float(self._left)
        for part in parts:
            text = part.text.replace("\n", "\\n")
            width = self._font.getlength(text)
            if x + width > self.WIDTH - self.MARGIN and x > self._left:
                x, y = float(self._left), y + self.LINE
            if ink:
                if part.kind in self.TINT:
                    ink.rectangle((x, y - 1, x + width, y + self.LINE - 4), self.TINT[part.kind])
                ink.text((x, y), text, self.INK[part.kind], self._font)
            x += width + (2 if part.kind in self.TINT else 0)
        return y
