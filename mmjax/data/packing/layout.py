"""One row: its shape, how segments are written into it, and how it is shown to people: what the model reads, which tokens see which, and
which carry loss."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

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
        segment: TokenizedSegment,
        *,
        prefix: int = 0,
        start: int = 0,
        drop_targets: bool = False,
    ) -> tuple[int, SampleError | None]:
        """Adds a segment.

        Args:
            segment: what to write.
            prefix: the number of the segment that this one also sees, or 0.
            start: position of its first token.
            drop_targets: write no targets: what the segment depends on is missing.

        Returns:
            The number of the segment, and the first error of an image in it. Such an image's slot stays masked, and nothing after it in
            the segment has a target.
        """
        where = slice(self._used, self._used + len(segment.tokens))
        if where.stop > self._shape.length:
            raise InputError(f"A row is longer than planned: {CHANGED}")
        self._used = where.stop
        self._segment += 1
        row = self.row
        row.tokens[where] = segment.tokens
        row.segment_ids[where] = self._segment
        row.prefix_segment_ids[where] = prefix
        row.positions[where] = np.arange(start, start + len(segment.tokens))
        if not drop_targets:
            row.targets[where] = segment.targets
        problem: SampleError | None = None
        for offset, image in segment.images:
            slot, first, count = self._images, where.start + offset, self._shape.visual_tokens
            if slot == self._shape.images_per_row:
                raise InputError(f"A row has more images than planned: {CHANGED}")
            self._images += 1
            visual = np.arange(slot * count, (slot + 1) * count)
            row.visual_embedding_index[first : first + count] = visual
            try:
                row.images[slot] = self._load(image)
                row.image_mask[slot] = True
            except SampleError as error:
                if problem is None:
                    problem = error
                    row.targets[first : where.stop] = NO_TARGET
        return self._segment, problem


Kind = Literal["context", "special", "visual", "target"]


@dataclass(frozen=True)
class PreviewToken:
    """Something to show: a token, or the visual tokens of one image."""

    text: str
    kind: Kind


@dataclass(frozen=True)
class PreviewSegment:
    """One segment of a row, decoded."""

    number: int
    prefix: int
    first: int
    last: int
    tokens: tuple[PreviewToken, ...]

    @property
    def title(self) -> str:
        """Its number, what it sees besides itself, and its positions."""
        sees = f" sees {self.prefix}" if self.prefix else ""
        return f"segment {self.number}{sees}, positions {self.first}-{self.last}"


def decode(row: Row, tokenizer: Tokenizer) -> Iterator[PreviewSegment]:
    """The segments of a row. Each target is shown where the token stands that it should be: what one reads is what the loss is taken on."""
    names = {
        tokenizer.pad: "<pad>",
        tokenizer.bos: "<bos>",
        tokenizer.eos: "<eos>",  # which may be the padding too
        tokenizer.image: "<image>",
    }

    def shown(token: int, kind: Kind) -> PreviewToken:
        return PreviewToken(tokenizer.decode([token]) or names.get(token, f"<{token}>"), kind)

    for number in range(1, int(row.segment_ids.max(initial=PADDING_SEGMENT)) + 1):
        where = np.flatnonzero(row.segment_ids == number)
        tokens = []
        target = NO_TARGET  # of the position before
        for index in where:
            token, visual = int(row.tokens[index]), int(row.visual_embedding_index[index])
            slot, within = divmod(visual, row.visual_tokens)
            if visual != NO_IMAGE and not within:
                note = "" if row.image_mask[slot] else ", unreadable and masked"
                text = f"<image {slot}: {row.visual_tokens} visual tokens{note}>"
                tokens.append(PreviewToken(text, "visual"))
            elif visual == NO_IMAGE and target != NO_TARGET:
                tokens.append(shown(target, "target"))
            elif visual == NO_IMAGE:
                tokens.append(shown(token, "context" if tokenizer.decode([token]) else "special"))
            target = int(row.targets[index])
        if target != NO_TARGET:  # the last target is not among the inputs
            tokens.append(shown(target, "target"))
        yield PreviewSegment(
            number,
            int(row.prefix_segment_ids[where[0]]),
            int(row.positions[where[0]]),
            int(row.positions[where[-1]]),
            tuple(tokens),
        )


def preview(row: Row, tokenizer: Tokenizer) -> str:
    """The row as plain text, a line per segment. Each token that carries loss stands in [brackets]; special tokens in <angles>."""
    segments = list(decode(row, tokenizer))
    width = max((len(segment.title) for segment in segments), default=0)
    lines = [_headline(row)]
    for segment in segments:
        text = "".join(
            f"[{token.text}]" if token.kind == "target" else token.text for token in segment.tokens
        )
        lines.append(f"{segment.title:<{width}} | " + text.replace("\n", "\\n"))
    return "\n".join(lines)


def _headline(row: Row) -> str:
    filled = int(np.count_nonzero(row.segment_ids != PADDING_SEGMENT))
    return (
        f"{filled} of {len(row.tokens)} tokens, {int(row.segment_ids.max(initial=0))} segments, "
        f"{int(row.image_mask.sum())} of {len(row.image_mask)} images, {int(np.count_nonzero(row.targets != NO_TARGET))} targets"
    )


_WIDTH, _SIDE, _MARGIN, _LINE = 1100, 224, 16, 24
_LEFT = 2 * _MARGIN + _SIDE  # of the texts
_INK: dict[Kind, str] = {
    "context": "#24292f",
    "special": "#8c959f",
    "visual": "#0550ae",
    "target": "#0a5a1e",
}
_TINT: dict[Kind, str] = {"visual": "#ddf4ff", "target": "#aceebb"}


def save_preview(row: Row, tokenizer: Tokenizer, path: Path | str) -> None:
    """Draws the row as a PNG file: in a column at the left its images as the encoder reads them, at the right its segments as lines of
    tokens, tinted where they carry loss."""
    font, small = ImageFont.load_default(size=16), ImageFont.load_default(size=13)
    texts = [(float(_LEFT), _MARGIN, _headline(row), font, "#24292f", "")]
    y = _MARGIN + _LINE + _MARGIN // 2
    for segment in decode(row, tokenizer):
        texts.append((float(_LEFT), y, segment.title, small, "#57606a", ""))
        x, y = float(_LEFT), y + _LINE - 4
        for token in segment.tokens:
            text = token.text.replace("\n", "\\n")
            width = font.getlength(text)
            if x + width > _WIDTH - _MARGIN and x > _LEFT:
                x, y = float(_LEFT), y + _LINE
            tint = _TINT.get(token.kind, "")
            texts.append((x, y, text, font, _INK[token.kind], tint))
            x += width + (2 if tint else 0)
        y += _LINE + 6
    column = _MARGIN + len(row.images) * (_SIDE + _MARGIN)
    canvas = Pillow.new("RGB", (_WIDTH, max(y + _MARGIN, column)), "white")
    ink = ImageDraw.Draw(canvas)
    for x, top, text, face, colour, tint in texts:
        if tint:
            ink.rectangle((x, top - 1, x + face.getlength(text), top + _LINE - 4), tint)
        ink.text((x, top), text, colour, face)
    for slot, (pixels, shown) in enumerate(zip(row.images, row.image_mask, strict=True)):
        corner = (_MARGIN, _MARGIN + slot * (_SIDE + _MARGIN))
        if shown:
            image = Pillow.fromarray(pixels).resize((_SIDE, _SIDE), Pillow.Resampling.NEAREST)
            canvas.paste(image, corner)
        else:
            middle = (corner[0] + _SIDE // 2, corner[1] + _SIDE // 2)
            canvas.paste("#eaeef2", (*corner, corner[0] + _SIDE, corner[1] + _SIDE))
            ink.text(middle, "no image", "#57606a", small, anchor="mm")
    canvas.save(path, format="PNG")
