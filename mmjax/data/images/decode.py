"""Images: any common file to uint8 pixels of the size the encoder reads."""

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from mmjax.data.examples import SampleError
from mmjax.typing import UInt8

MAX_PIXELS = 64 * 1024 * 1024
"""Larger images are refused before they are decoded: 64 Mpixel are 192 MB of RGB."""

Resize = Literal["stretch", "crop"]


def load_image(
    source: Path | str | bytes | np.ndarray, size: int, *, resize: Resize = "stretch"
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image, turns it upright, and resizes it to size x size with an antialiased bicubic filter.

    Args:
        source: a path, the bytes of an image file, or uint8 pixels [h, w], [h, w, 3] or [h, w, 4].
        size: pixels per side.
        resize: "stretch" does not keep the aspect; "crop" brings the shorter side to `size` and cuts the middle out, as CLIP does.

    Returns:
        [size, size, 3] RGB. Transparent parts are white.

    Raises:
        SampleError: the image is missing, damaged or has more than MAX_PIXELS pixels.
    """
    if resize not in get_args(Resize):
        raise ValueError(f"unknown resize {resize!r}")

    def fit(image: Pillow.Image) -> Pillow.Image:
        if resize == "crop":
            return centre_crop(resize_shorter(image, size, Pillow.Resampling.BICUBIC), size, size)
        return image.resize((size, size), Pillow.Resampling.BICUBIC)

    return load_fitted(source, fit)


def load_fitted(
    source: Path | str | bytes | np.ndarray, fit: Callable[[Pillow.Image], Pillow.Image]
) -> UInt8[np.ndarray, "h w 3"]:
    """As `load_image`, but `fit` says what becomes of the upright RGB image."""
    where = (
        f"{len(source)} bytes"
        if isinstance(source, bytes)
        else "an array"
        if isinstance(source, np.ndarray)
        else str(source)
    )
    try:
        if isinstance(source, np.ndarray):
            opened = Pillow.fromarray(source)
        else:
            opened = Pillow.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        with opened as image:
            if image.width * image.height > MAX_PIXELS:
                raise SampleError(
                    "oversized image", f"{where} has {image.width} x {image.height} pixels"
                )
            if not image.width * image.height:
                raise SampleError("corrupt image", f"{where} has no pixels")
            upright = ImageOps.exif_transpose(image)
            return np.array(fit(_to_rgb(upright)), np.uint8)
    except SampleError:
        raise
    except FileNotFoundError:
        raise SampleError("missing image", where) from None
    except Pillow.DecompressionBombError as error:
        raise SampleError("oversized image", f"{where}: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders meet damaged bytes with errors of every kind
        raise SampleError("corrupt image", f"{where}: {error}") from None


def _to_rgb(image: Pillow.Image) -> Pillow.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which a plain conversion would clip at 255
        return Pillow.fromarray(
            (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        ).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Pillow.alpha_composite(Pillow.new("RGBA", image.size, "white"), image).convert("RGB")


def resize_shorter(image: Pillow.Image, size: int, resample: Pillow.Resampling) -> Pillow.Image:
    """Resizes an image so that its shorter side has `size` pixels; the longer one keeps the aspect, rounded down.

    Raises SampleError if that has more than MAX_PIXELS pixels.
    """
    shorter, longer = min(image.size), max(image.size)
    long = size * longer // shorter
    if size * long > MAX_PIXELS:
        raise SampleError(
            "oversized image", f"{image.width} x {image.height} pixels would become {size} x {long}"
        )
    return image.resize((size, long) if image.width <= image.height else (long, size), resample)


def centre_crop(image: Pillow.Image, height: int, width: int) -> Pillow.Image:
    """The middle of an image; where it is too small, with black around it."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


class ImageCache:
    """Resized images kept in memory, so that a small set is decoded once and not in every epoch.

    Once full, it keeps what it has: in shuffled passes over a set that does not fit, the images kept are found again each time, while
    a cache that drops the oldest would find next to none. Only images read from files are kept. Safe to use from several threads.
    """

    def __init__(self, max_bytes: int = 256 * 1024 * 1024):
        self._free = max_bytes
        self._images: dict[tuple[str, int, str], np.ndarray] = {}
        self._lock = threading.Lock()

    def load(
        self, source: Path | str | bytes | np.ndarray, size: int, *, resize: Resize = "stretch"
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The same as `load_image`, but the array is shared and read-only."""
        if isinstance(source, bytes | np.ndarray):
            return load_image(source, size, resize=resize)
        key = (str(source), size, resize)
        if (kept := self._images.get(key)) is not None:
            return kept
        pixels = load_image(source, size, resize=resize)
        pixels.flags.writeable = False
        with self._lock:
            if key not in self._images and pixels.nbytes <= self._free:
                self._images[key] = pixels
                self._free -= pixels.nbytes
        return pixels

    def __getstate__(self) -> dict:
        # Another process starts with an empty one.
        return {"_free": self._free + sum(pixels.nbytes for pixels in self._images.values())}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["_free"])  # type: ignore[misc]
