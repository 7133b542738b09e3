"""Images: any common file to uint8 pixels of the size the encoder reads."""

import io
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import numpy as np
from PIL import ExifTags
from PIL import Image as Pillow

from mmjax.data.examples import SampleError
from mmjax.data.images.metadata import without_metadata
from mmjax.typing import UInt8

MAX_PIXELS = 64 * 1024 * 1024
"""Larger images are refused before they are decoded: 64 Mpixel are 192 MB of RGB."""
MAX_SIDE = 1 << 16
"""So are images with a longer side, which resizing would need gigabytes for. No JPEG has one."""
MAX_BYTES = 1 << 30
"""So are larger files: 64 Mpixel of four channels with 16 bits each are half of that."""

Resize = Literal["stretch", "crop"]

_LFS = b"version https://git-lfs"
_UPRIGHT = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
"""What brings an image upright, by its EXIF orientation."""
_FULL_SCALE = frozenset({"JPEG2000", "PNG", None})
"""Formats in which 16 bits of grey mean 0 (black) to 65,535 (white); None: an array."""
_BITS, _PHOTOMETRIC = 258, 262  # tags of TIFF


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
        SampleError: the image is missing, no regular file, unreadable or damaged; has more than MAX_PIXELS pixels, MAX_SIDE in a row or
            MAX_BYTES; or has pixels of which nothing says what is black and what is white: floats, and integers of more than 16 bits.
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
    try:
        if isinstance(source, np.ndarray):
            where = "an array"
            if source.dtype.kind not in "bu":
                raise SampleError("pixels of unknown range", f"{where} of {source.dtype}")
            return _fitted(Pillow.fromarray(source), fit, where)
        where = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
        with io.BytesIO(source) if isinstance(source, bytes) else _open_file(source) as file:
            return _decoded(file, fit, where)
    except (SampleError, MemoryError):
        raise
    except Pillow.DecompressionBombError as error:
        raise SampleError("oversized image", f"{where}: {error}") from None
    except Exception as error:  # decoders meet damaged bytes with errors of every kind
        raise SampleError("corrupt image", f"{where}: {error}") from None


def check_file(path: Path | str) -> None:
    """Looks for an image file, but not into it. Raises SampleError if it is missing, out of reach, no regular file, or too large.

    A pipe in its place would block for ever, and a device has no end.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise SampleError("missing image", str(path)) from None
    except OSError as error:
        raise SampleError("unreadable image", f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise SampleError("image that is no regular file", str(path))
    if found.st_size > MAX_BYTES:
        raise SampleError("oversized image", f"{path} has {found.st_size:,} bytes")


def _open_file(path: Path | str) -> BinaryIO:
    check_file(path)
    try:
        return open(path, "rb")
    except OSError as error:
        raise SampleError("unreadable image", f"{path}: {error.strerror}") from None


def _decoded(
    file: BinaryIO, fit: Callable[[Pillow.Image], Pillow.Image], where: str
) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an image file, whatever is wrong with what stands beside them."""
    try:
        with Pillow.open(file) as image:
            return _fitted(image, fit, where)
    except (SampleError, MemoryError):
        raise
    except Exception as error:
        file.seek(0)
        if file.read(len(_LFS)) == _LFS:
            advice = "the image itself comes with `git lfs pull`"
            raise SampleError("pointer of Git LFS for an image", f"{where}: {advice}") from None
        file.seek(0)
        if (pixels := without_metadata(file)) is None:
            if isinstance(error, Pillow.UnidentifiedImageError):
                raise SampleError("corrupt image", f"{where}: cannot identify image file") from None
            raise
    with Pillow.open(io.BytesIO(pixels)) as image:
        return _fitted(image, fit, where)


def _fitted(
    image: Pillow.Image, fit: Callable[[Pillow.Image], Pillow.Image], where: str
) -> UInt8[np.ndarray, "h w 3"]:
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise SampleError("oversized image", f"{where} has {image.width} x {image.height} pixels")
    if not image.width * image.height:
        raise SampleError("corrupt image", f"{where} has no pixels")
    image.load()
    return np.array(fit(_upright(image, _to_rgb(image, where))), np.uint8)


def _upright(opened: Pillow.Image, pixels: Pillow.Image) -> Pillow.Image:
    """The pixels of an image that was opened, turned as its metadata say."""
    try:
        method = _UPRIGHT.get(opened.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata, which leave the pixels what they are
        method = None
    return pixels if method is None else pixels.transpose(method)


def _to_rgb(image: Pillow.Image, where: str) -> Pillow.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Pillow.fromarray(_grey(image, where)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Pillow.alpha_composite(Pillow.new("RGBA", image.size, "white"), image).convert("RGB")


def _grey(image: Pillow.Image, where: str) -> UInt8[np.ndarray, "h w"]:
    """Grey of more than 8 bits, which a plain conversion would clip at 255. Raises SampleError where nothing says what is white."""
    bits, inverted = 16, False
    known = image.format in _FULL_SCALE and image.mode != "I"
    if image.format == "PPM":  # which says what is white; Pillow scales it to 16 bits
        known = image.mode != "F"
    elif image.format == "TIFF" and image.mode.startswith("I;16"):
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits, inverted, known = tags.get(_BITS, (16,))[0], tags.get(_PHOTOMETRIC) == 0, True
    if not known or image.mode == "F":
        raise SampleError(
            "pixels of unknown range",
            f"{where} has pixels of the mode {image.mode} in the format {image.format}; save it with 8 or 16 bits",
        )
    pixels = np.asarray(image).astype(np.uint32) >> (bits - 8)
    pixels = pixels.clip(0, 255).astype(np.uint8)
    return 255 - pixels if inverted else pixels


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
