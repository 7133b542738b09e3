"""Where the time of a row goes: each phase on its own, in one thread, over pictures that have not been read before."""

import io
import time
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image as Pillow

from mmjax.data.encoding import Encoder
from mmjax.data.examples import Image
from mmjax.data.images import load_fitted
from mmjax.data.layout import RowShape, RowWriter, stack
from mmjax.data.rows import Rows
from mmjax.data.sources import open_source
from mmjax.data.tokenizer import WordTokenizer
from mmjax.recipe import SourceConfig

PHASES = ("record", "read", "decode", "resize", "tokenise", "pack", "transfer")


class Times:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def of[T](self, phase: str, action: Callable[[], T]) -> T:
        begun = time.perf_counter()
        result = action()
        self.seconds[phase] += time.perf_counter() - begun
        return result


def by_phase(config: SourceConfig, shape: RowShape, tokenizer: WordTokenizer, count: int, batch: int) -> dict[str, float]:
    """Seconds per picture of every phase, over the first `count` examples of a source with one caption each.

    "record" is the line of the data file, "read" the bytes of the picture, "transfer" the way of a batch to the device.
    """
    source, encoder, times = open_source(config), Encoder(tokenizer, shape.visual_tokens), Times()
    rows = []
    for index in range(count):
        example = times.of("record", lambda index=index: source[index])
        (image,) = example.prefix
        assert isinstance(image, Image)
        pixels = _pixels(image, shape.image_size, times)
        pieces = times.of("tokenise", lambda example=example: (encoder.prefix(example.prefix), encoder.branch(example.branches[0])))
        rows.append(times.of("pack", lambda pixels=pixels, pieces=pieces: _row(shape, pixels, pieces)))
        if len(rows) == batch:
            stacked = times.of("pack", lambda rows=rows: stack(rows))
            times.of("transfer", lambda stacked=stacked: jax.block_until_ready(jax.device_put(stacked)))
            rows = []
    return {phase: seconds / count for phase, seconds in times.seconds.items()}


def _pixels(image: Image, size: int, times: Times) -> np.ndarray:
    """The picture through the loader's own way, which is told apart at the moment when it asks for the resizing."""
    data = times.of("read", lambda: _bytes(image.source))
    moments = []

    def fit(picture: Pillow.Image) -> Pillow.Image:
        moments.append(time.perf_counter())
        return picture.resize((size, size), Pillow.Resampling.BICUBIC)

    begun = time.perf_counter()
    pixels = load_fitted(data, fit)
    times.seconds["resize"] += time.perf_counter() - moments[0]
    times.seconds["decode"] += moments[0] - begun
    return pixels


def _bytes(source: object) -> bytes:
    with open(source, "rb") as file:  # type: ignore[call-overload]
        return io.BytesIO(file.read()).getvalue()


def _row(shape: RowShape, pixels: np.ndarray, pieces: tuple) -> object:
    writer = RowWriter(shape, lambda _: pixels)
    prefix, _ = writer.write(pieces[0])
    writer.write(pieces[1], prefix=prefix, start=len(pieces[0].tokens))
    return writer.row


def whole(rows: Rows, count: int, batch: int) -> float:
    """Seconds per picture of the loader's own rows, stacked and brought to the device: what the phases should add up to."""
    begun = time.perf_counter()
    for first in range(0, count - batch + 1, batch):
        found = stack([rows.load(index)[0] for index in range(first, first + batch)])
        jax.block_until_ready(jax.device_put(found))
    return (time.perf_counter() - begun) / (count // batch * batch)
