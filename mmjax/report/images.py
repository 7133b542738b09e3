"""Images as PNG data URIs: the page carries every byte that it shows."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from mmjax.report.html import Html, tag
from mmjax.typing import Float, UInt8

FULL_TINT = 8
_HEAT = np.array([203, 74, 20], np.float32)  # of the place that gets the most attention
_WINDOW_LINE = 255.0


def image(pixels: UInt8[np.ndarray, "h w 3"], description: str, *, scale: int = 1) -> Html:
    """An <img> of the pixels, enlarged `scale` times without smoothing."""
    return _embedded(Pillow.fromarray(pixels.repeat(scale, 0).repeat(scale, 1)), description)


def thumbnail(path: Path, description: str, *, side: int = 160) -> Html | None:
    """An <img> of an image file, at most `side` pixels wide and high; None if the file is gone or is no image."""
    try:
        with Pillow.open(path) as opened:
            opened.thumbnail((side, side))
            shown = opened.convert("RGBA")
    # What Pillow raises for damaged files.
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError):
        return None
    paper = Pillow.new("RGBA", shown.size, "white")
    return _embedded(Pillow.alpha_composite(paper, shown).convert("RGB"), description)


def png(data: bytes, description: str) -> Html:
    """An <img> of the bytes of a PNG file."""
    return tag(
        "img",
        src=f"data:image/png;base64,{base64.b64encode(data).decode()}",
        alt=description,
        loading="lazy",
    )


def heat(
    pixels: UInt8[np.ndarray, "h w 3"],
    weights: Float[np.ndarray, "P P"],
    window: int,
    *,
    side: int = 336,
) -> UInt8[np.ndarray, "s s 3"]:
    """An image in pale grey under a tint that grows with the weights; windows are ruled in white.

    A patch that gets no more than an equal share of its window has no tint. It deepens with the logarithm of the share, up to `FULL_TINT`
    equal shares, or all of a smaller window.

    Args:
        weights: attention of each patch; those of a window sum to 1.
        window: patches per side of a window.
        side: of the result in pixels, about (a multiple of the number of patches).
    """
    grid = len(weights)
    cell = max(2, side // grid)
    size = (cell * grid, cell * grid)
    grey = np.asarray(
        Pillow.fromarray(pixels).convert("L").resize(size, Pillow.Resampling.BICUBIC), np.float32
    )
    canvas = np.repeat(110 + grey[..., None] * (120 / 255), 3, axis=-1)
    full = np.log(max(min(window**2, FULL_TINT), 2))
    tint = (
        np.clip(np.log(np.maximum(weights * window**2, 1.0)) / full, 0, 1)
        .repeat(cell, 0)
        .repeat(cell, 1)[..., None]
    )
    canvas = canvas * (1 - 0.85 * tint) + _HEAT * (0.85 * tint)
    for line in range(window * cell, size[0], window * cell):
        canvas[line - 1 : line + 1] = _WINDOW_LINE
        canvas[:, line - 1 : line + 1] = _WINDOW_LINE
    return canvas.round().clip(0, 255).astype(np.uint8)


def _embedded(image: Pillow.Image, description: str) -> Html:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return png(buffer.getvalue(), description)
