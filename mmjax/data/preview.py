"""A packed row made visible: what the model reads, which tokens it sees from where, and which tokens carry loss."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from mmjax.data.layout import Row
from mmjax.data.tokenizer import Tokenizer
from mmjax.typing import NO_IMAGE, NO_TARGET, PADDING_SEGMENT

Kind = Literal["context", "special", "visual", "target"]


@dataclass(frozen=True)
class Part:
    """Something to show: a token, or the visual tokens of one picture."""

    text: str
    kind: Kind


@dataclass(frozen=True)
class Segment:
    """One segment of a row, decoded."""

    number: int
    prefix: int
    first: int
    last: int
    parts: tuple[Part, ...]

    @property
    def title(self) -> str:
        """Its number, what it sees besides itself, and its positions."""
        sees = f" sees {self.prefix}" if self.prefix else ""
        return f"segment {self.number}{sees}, positions {self.first}-{self.last}"


def preview(row: Row, tokenizer: Tokenizer) -> str:
    """The row as plain text, a line per segment. Each token that carries loss stands in [brackets]; special tokens in <angles>."""
    segments = list(decode(row, tokenizer))
    width = max((len(segment.title) for segment in segments), default=0)
    lines = [_headline(row), *(f"{segment.title:<{width}} | {_plain(segment.parts)}" for segment in segments)]
    return "\n".join(lines)


def save_preview(row: Row, tokenizer: Tokenizer, path: Path | str) -> None:
    """Draws the row as a PNG file: its pictures as the encoder reads them, beside its segments. A tint marks the tokens that carry loss."""
    segments = list(decode(row, tokenizer))
    pictures = [pixels if shown else None for pixels, shown in zip(row.images, row.image_mask, strict=True)]
    _Drawing().draw(_headline(row), pictures, segments).save(path, format="PNG")


def decode(row: Row, tokenizer: Tokenizer) -> Iterator[Segment]:
    """The segments of a row. Each target is shown where the token stands that it should be: what one reads is what the loss is taken on."""
    count = int(row.segments.max(initial=PADDING_SEGMENT))
    for number in range(1, count + 1):
        where = np.flatnonzero(row.segments == number)
        positions = row.positions[where]
        parts = tuple(_parts(row, where, tokenizer))
        yield Segment(number, int(row.prefixes[where[0]]), int(positions[0]), int(positions[-1]), parts)


def _parts(row: Row, where: np.ndarray, tokenizer: Tokenizer) -> Iterator[Part]:
    predicted = NO_TARGET
    for index in where:
        slot = int(row.image_slot[index])
        if slot == NO_IMAGE:
            yield _context(int(row.tokens[index]), tokenizer) if predicted == NO_TARGET else Part(_token(predicted, tokenizer), "target")
        elif slot % row.visual_tokens == 0:
            yield _picture(row, slot // row.visual_tokens)
        predicted = int(row.targets[index])
    if predicted != NO_TARGET:
        yield Part(_token(predicted, tokenizer), "target")  # the last target is not among the inputs


def _picture(row: Row, number: int) -> Part:
    note = "" if row.image_mask[number] else ", unreadable and masked"
    return Part(f"<picture {number}: {row.visual_tokens} visual tokens{note}>", "visual")


def _context(token: int, tokenizer: Tokenizer) -> Part:
    text = _token(token, tokenizer)
    return Part(text, "context" if tokenizer.decode([token]) else "special")


def _token(token: int, tokenizer: Tokenizer) -> str:
    names = {
        tokenizer.pad: "<pad>",
        tokenizer.bos: "<bos>",
        tokenizer.eos: "<eos>",
        tokenizer.image: "<image>",
    }  # eos may be the padding too
    return tokenizer.decode([token]) or names.get(token, f"<{token}>")


def _plain(parts: tuple[Part, ...]) -> str:
    return "".join(f"[{part.text}]" if part.kind == "target" else part.text for part in parts).replace("\n", "\\n")


def _headline(row: Row) -> str:
    filled = int(np.count_nonzero(row.segments != PADDING_SEGMENT))
    return (
        f"{filled} of {len(row.tokens)} tokens, {int(row.segments.max(initial=0))} segments, "
        f"{int(row.image_mask.sum())} of {len(row.image_mask)} pictures, {int(np.count_nonzero(row.targets != NO_TARGET))} targets"
    )


class _Drawing:
    """Lays a preview out: pictures in a column at the left, segments as lines of tinted tokens at the right."""

    WIDTH, SIDE, MARGIN, LINE = 1100, 224, 16, 24
    INK: ClassVar[dict[Kind, str]] = {"context": "#24292f", "special": "#8c959f", "visual": "#0550ae", "target": "#0a5a1e"}
    TINT: ClassVar[dict[Kind, str]] = {"visual": "#ddf4ff", "target": "#aceebb"}

    def __init__(self) -> None:
        self._font = ImageFont.load_default(size=16)
        self._small = ImageFont.load_default(size=13)
        self._left = 2 * self.MARGIN + self.SIDE

    def draw(self, headline: str, pictures: list[np.ndarray | None], segments: list[Segment]) -> Pillow.Image:
        """The drawing, as high as it needs to be."""
        height = self._paint(None, headline, segments)
        column = self.MARGIN + len(pictures) * (self.SIDE + self.MARGIN)
        canvas = Pillow.new("RGB", (self.WIDTH, max(height, column)), "white")
        self._paint(ImageDraw.Draw(canvas), headline, segments)
        for slot, pixels in enumerate(pictures):
            corner = (self.MARGIN, self.MARGIN + slot * (self.SIDE + self.MARGIN))
            canvas.paste(self._picture(pixels), corner)
        return canvas

    def _picture(self, pixels: np.ndarray | None) -> Pillow.Image:
        size = (self.SIDE, self.SIDE)
        if pixels is not None:
            return Pillow.fromarray(pixels).resize(size, Pillow.Resampling.NEAREST)
        empty = Pillow.new("RGB", size, "#eaeef2")
        ImageDraw.Draw(empty).text((self.SIDE // 2, self.SIDE // 2), "no picture", "#57606a", self._small, anchor="mm")
        return empty

    def _paint(self, ink: ImageDraw.ImageDraw | None, headline: str, segments: list[Segment]) -> int:
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

    def _paint_parts(self, ink: ImageDraw.ImageDraw | None, parts: tuple[Part, ...], y: int) -> int:
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
