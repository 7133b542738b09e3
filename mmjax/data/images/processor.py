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

        def fit(image: Pillow.Image) -> Pillow.Image:
            if isinstance(self.size, int):
                image = resize_shorter(image, self.size, self.resample)
            elif self.size is not None:
                image = image.resize(self.size[::-1], self.resample)
            return image if self.crop is None else centre_crop(image, *self.crop)

        return load_fitted(source, fit)


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
        name = content.get("image_processor_type") or content.get("feature_extractor_type") or ""
        name = str(name)
        stem = next(
            (name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name
        )
        if stem not in _DEFAULTS:
            known = ", ".join(f"{stem}ImageProcessor" for stem in _DEFAULTS)
            raise InputError(
                f"{file} is for {name or 'an image processor without a name'}, which mmjax does not know; it knows {known}."
            )
        self._file, self._defaults = file, _DEFAULTS[stem]
        given = {name: value for name, value in content.items() if value is not None}
        self._content = self._defaults | given

    def read(self) -> ImageProcessor:
        content = self._content
        for name, value in content.items():
            if name.startswith("do_") and name not in _KNOWN_STEPS and value:
                raise self.refused(f"{name} is {value}, a step that mmjax does not know")
        factor = content.get("rescale_factor", 1 / 255)
        scaled = self.step("do_rescale") and _is_number(factor)
        if not scaled or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
            raise self.refused("pixels are not divided by 255, which mmjax always does")
        size = content["size"]
        if isinstance(size, int) and "shortest_edge" in self._defaults["size"]:
            size = {"shortest_edge": size}  # as files of some years ago have it
        chosen: int | Size | None = None
        normalizes = self.step("do_normalize")
        if self.step("do_resize"):
            shorter = isinstance(size, dict) and set(size) == {"shortest_edge"}
            if shorter and _is_side(size["shortest_edge"]):
                chosen = int(size["shortest_edge"])
            else:
                chosen = self.rectangle("size", size)
        try:
            resample = Pillow.Resampling(content["resample"])
        except ValueError:
            raise self.refused(
                f"resample must be a filter of Pillow, not {content['resample']!r}"
            ) from None
        crop = None
        if self.step("do_center_crop", False):
            crop = self.rectangle("crop_size", content.get("crop_size", 224))
        return ImageProcessor(
            size=chosen,
            resample=resample,
            crop=crop,
            mean=self.channels("image_mean") if normalizes else (0.0, 0.0, 0.0),
            std=self.channels("image_std") if normalizes else (1.0, 1.0, 1.0),
        )

    def step(self, name: str, default: bool = True) -> bool:
        value = self._content.get(name, default)
        if not isinstance(value, bool):
            raise self.refused(f"{name} must be true or false, not {value!r}")
        return value

    def rectangle(self, name: str, value: Any) -> Size:
        if _is_side(value):
            return value, value
        if (
            not isinstance(value, dict)
            or set(value) != {"height", "width"}
            or not all(map(_is_side, value.values()))
        ):
            raise self.refused(
                f"{name} must be a height and a width, or for size a shortest edge, not {value!r}"
            )
        return value["height"], value["width"]

    def channels(self, name: str) -> Channels:
        value = self._content[name]
        value = [value] * 3 if _is_number(value) else value
        if not isinstance(value, list) or len(value) != 3 or not all(map(_is_number, value)):
            raise self.refused(f"{name} must be three numbers, not {value!r}")
        if name == "image_std" and min(value) <= 0:
            raise self.refused(f"{name} must be positive, not {value!r}")
        return float(value[0]), float(value[1]), float(value[2])

    def refused(self, reason: str) -> InputError:
        return InputError(f"{self._file} cannot be used: {reason}.")


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= 1 << 14


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < _LARGEST_NUMBER
    )
