"""How the images of a published encoder are prepared: what its preprocessor_config.json says."""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from mmjax.base.files import read_object
from mmjax.data.images.decode import centre_crop, load_fitted, resize_shorter
from mmjax.errors import InputError
from mmjax.typing import UInt8

NAME = "preprocessor_config.json"

Channels = tuple[float, float, float]
Size = tuple[int, int]

_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_SHORTER = {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224}

# What each class of transformers does where the file says nothing; an image processor may only be one of these.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": _CLIP | _SHORTER | {"resample": Pillow.Resampling.BICUBIC},
    "Siglip": _HALF
    | {"size": {"height": 224, "width": 224}, "resample": Pillow.Resampling.BICUBIC},
    "Bit": _CLIP | _SHORTER | {"resample": Pillow.Resampling.BICUBIC},
    "ViT": _HALF | {"size": {"height": 224, "width": 224}, "resample": Pillow.Resampling.BILINEAR},
}
_SUFFIXES = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
_LARGEST_NUMBER = 1e6
_KNOWN_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """What becomes of an image before an encoder sees it.

    Attributes:
        size: the shorter side in pixels, or (height, width), or None: as it is.
        resample: the filter, antialiased.
        crop: (height, width) cut out of the middle, black where the image is smaller; None: all of it.
        mean, std: per channel, of pixels scaled to [0, 1]; applied by the encoder.
    """

    size: int | Size | None
    resample: Pillow.Resampling
    crop: Size | None
    mean: Channels
    std: Channels

    def load(self, source: Path | str | bytes | np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels of an image as the encoder wants them, but for mean and std. Source and errors as in `load_image`."""
        return load_fitted(source, self._fit)

    def _fit(self, image: Pillow.Image) -> Pillow.Image:
        if isinstance(self.size, int):
            image = resize_shorter(image, self.size, self.resample)
        elif self.size is not None:
            image = image.resize(self.size[::-1], self.resample)
        return image if self.crop is None else centre_crop(image, *self.crop)


def open_image_processor(path: Path | str) -> ImageProcessor:
    """Reads preprocessor_config.json, or the one in a folder.

    Raises:
        InputError: there is none, it is damaged, or it asks for something that mmjax does not do.
    """
    file = Path(path)
    file = file / NAME if file.is_dir() else file
    if not os.path.lexists(file):
        raise InputError(f"There is no {file}, which says how images are prepared.")
    return _Reader(file, read_object(file, what="list of settings for images")).read()


class _Reader:
    """One file, and what its class does where it says nothing."""

    def __init__(self, file: Path, content: Mapping[str, Any]):
        self._file = file
        self._content = self._defaults(content) | {
            name: value for name, value in content.items() if value is not None
        }

    def read(self) -> ImageProcessor:
        self._check_steps()
        normalizes = self._step("do_normalize")
        return ImageProcessor(
            size=self._size() if self._step("do_resize") else None,
            resample=self._resample(),
            crop=self._rectangle("crop_size", self._content.get("crop_size", 224))
            if self._step("do_center_crop", False)
            else None,
            mean=self._channels("image_mean") if normalizes else (0.0, 0.0, 0.0),
            std=self._channels("image_std") if normalizes else (1.0, 1.0, 1.0),
        )

    def _defaults(self, content: Mapping[str, Any]) -> dict[str, Any]:
        name = str(
            content.get("image_processor_type") or content.get("feature_extractor_type") or ""
        )
        stem = next(
            (name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name
        )
        if stem not in _DEFAULTS:
            known = ", ".join(f"{stem}ImageProcessor" for stem in _DEFAULTS)
            raise InputError(
                f"{self._file} is for {name or 'an image processor without a name'}, which mmjax does not know; it knows {known}."
            )
        return _DEFAULTS[stem]

    def _check_steps(self) -> None:
        for name, value in self._content.items():
            if name.startswith("do_") and name not in _KNOWN_STEPS and value:
                raise self._refused(f"{name} is {value}, a step that mmjax does not know")
        factor = self._content.get("rescale_factor", 1 / 255)
        if (
            not self._step("do_rescale")
            or not _is_number(factor)
            or not math.isclose(factor, 1 / 255, rel_tol=1e-6)
        ):
            raise self._refused("pixels are not divided by 255, which mmjax always does")

    def _step(self, name: str, default: bool = True) -> bool:
        value = self._content.get(name, default)
        if not isinstance(value, bool):
            raise self._refused(f"{name} is {value!r}, neither true nor false")
        return value

    def _size(self) -> int | Size:
        size = self._content["size"]
        if isinstance(size, int) and "shortest_edge" in self._defaults(self._content)["size"]:
            size = {"shortest_edge": size}  # as files of some years ago have it
        if (
            isinstance(size, dict)
            and set(size) == {"shortest_edge"}
            and _is_side(size["shortest_edge"])
        ):
            return int(size["shortest_edge"])
        return self._rectangle("size", size)

    def _rectangle(self, name: str, value: Any) -> Size:
        if _is_side(value):
            return value, value
        if (
            not isinstance(value, dict)
            or set(value) != {"height", "width"}
            or not all(map(_is_side, value.values()))
        ):
            raise self._refused(
                f"{name} is {value!r}; mmjax knows a height and a width, or for size a shortest edge"
            )
        return value["height"], value["width"]

    def _resample(self) -> Pillow.Resampling:
        try:
            return Pillow.Resampling(self._content["resample"])
        except ValueError:
            raise self._refused(
                f"resample is {self._content['resample']!r}, which is no filter of Pillow"
            ) from None

    def _channels(self, name: str) -> Channels:
        value = self._content[name]
        value = [value] * 3 if _is_number(value) else value
        if not isinstance(value, list) or len(value) != 3 or not all(map(_is_number, value)):
            raise self._refused(f"{name} is {value!r}, not three numbers")
        if name == "image_std" and min(value) <= 0:
            raise self._refused(f"{name} is {value!r}, which must be positive")
        return float(value[0]), float(value[1]), float(value[2])

    def _refused(self, reason: str) -> InputError:
        return InputError(f"{self._file} cannot be used: {reason}.")


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= 1 << 14


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < _LARGEST_NUMBER
    )
