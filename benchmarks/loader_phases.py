"""Where the time of a row goes: each phase on its own, in one thread, over images that have not been read before."""

import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image as Pillow

from mmjax.data.examples import Example, Image
from mmjax.data.images.decode import load_fitted
from mmjax.data.packing.layout import Row, RowShape, RowWriter, stack
from mmjax.data.packing.rows import Rows
from mmjax.data.sources.base import SourceConfig
from mmjax.data.text.templates import TEMPLATES
from mmjax.data.text.tokenizer import SegmentTokenizer, WordTokenizer

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


def by_phase(
    config: SourceConfig, shape: RowShape, tokenizer: WordTokenizer, count: int, batch: int
) -> dict[str, float]:
    """Seconds per image of every phase, over the first `count` examples of a source with one caption each.

    "record" is the line of the data file, "read" the bytes of the image, "transfer" the way of a batch to the device.
    """
    source, times = config.open(TEMPLATES["plain"]), Times()
    tokenizes = SegmentTokenizer(tokenizer, shape.visual_tokens)
    rows = []
    for index in range(count):
        example = times.of("record", lambda index=index: source[index])
        (image,) = example.prefix
        assert isinstance(image, Image)
        pixels = load(image, shape.image_size, times)

        def tokenize(example: Example = example) -> tuple:
            return (
                tokenizes.prefix(example.prefix),
                tokenizes.continuation(example.continuations[0]),
            )

        def pack(texts: tuple, pixels: np.ndarray = pixels) -> Row:
            writer = RowWriter(shape, lambda _: pixels)
            prefix, _ = writer.write(texts[0])
            writer.write(texts[1], prefix=prefix, start=len(texts[0].tokens))
            return writer.row

        texts = times.of("tokenise", tokenize)
        rows.append(times.of("pack", lambda pack=pack, texts=texts: pack(texts)))
        if len(rows) == batch:
            stacked = times.of("pack", lambda rows=rows: stack(rows))
            times.of(
                "transfer", lambda stacked=stacked: jax.block_until_ready(jax.device_put(stacked))
            )
            rows = []
    return {phase: seconds / count for phase, seconds in times.seconds.items()}


def load(image: Image, size: int, times: Times) -> np.ndarray:
    """The pixels of an image file as the loader makes them; resizing begins when the decoded image is handed over to be fitted."""
    data = times.of("read", pathlib.Path(image.source).read_bytes)
    moments = []

    def fit(decoded: Pillow.Image) -> Pillow.Image:
        moments.append(time.perf_counter())
        return decoded.resize((size, size), Pillow.Resampling.BICUBIC)

    begun = time.perf_counter()
    pixels = load_fitted(data, fit)
    times.seconds["resize"] += time.perf_counter() - moments[0]
    times.seconds["decode"] += moments[0] - begun
    return pixels


def whole(rows: Rows, count: int, batch: int) -> float:
    """Seconds per image of the loader's own rows, stacked and brought to the device: what the phases should add up to."""
    begun = time.perf_counter()
    for first in range(0, count - batch + 1, batch):
        found = stack([rows.load(index)[0] for index in range(first, first + batch)])
        jax.block_until_ready(jax.device_put(found))
    return (time.perf_counter() - begun) / (count // batch * batch)
