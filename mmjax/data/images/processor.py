"""How the images of a published encoder are prepared: what processor_config.json or preprocessor_config.json says, as transformers
understands it."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from mmjax.base.huggingface import IMAGES, image_processor_class, image_settings, transformers
from mmjax.data.images.decode import centre_crop, load_fitted, resize_shorter
from mmjax.errors import InputError
from mmjax.typing import UInt8

Channels = tuple[float, float, float]
Size = tuple[int, int]

_LARGEST_NUMBER = 1e6
_LONGEST_REASON = 500  # characters; a setting may be a text of any length
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
    """Reads the settings of images in a folder or a file (`image_settings`).

    Raises:
        InputError: there are none, they are damaged, or they ask for something that mmjax does not do.
    """
    path = Path(path)
    found = image_settings(path)
    if found is None:
        file = path / IMAGES if path.is_dir() else path
        raise InputError(f"There is no {file}, which says how images are prepared.")
    file, content = found
    try:
        return _checked(_settings(file, content))
    except InputError as error:
        raise InputError(f"{file} cannot be used: {str(error)[:_LONGEST_REASON]}.") from None


def _settings(file: Path, content: Mapping[str, Any]) -> Any:
    """The image processor of transformers that a file names, with what its class does where the file says nothing."""
    name, kind = image_processor_class(file, dict(content))
    if not _has_common_steps(kind):
        raise InputError(
            f"it is for {repr(name) if name else 'an image processor without a name'}, which mmjax does not know; it knows those that do "
            "nothing but resize, crop and normalise the whole image, such as CLIPImageProcessor"
        )
    common = kind.valid_kwargs.__annotations__
    # Methods are no settings.
    given = {key: content[key] for key in content if key in common or not hasattr(kind, key)}
    try:
        return kind.from_dict(given)
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(f"{kind.__name__} refuses its settings: {error}") from None


def _has_common_steps(kind: Any) -> bool:
    """Whether a class of transformers does what its settings say and, having no methods of its own, nothing else."""
    common = transformers().image_processing_backends.PilBackend
    if not isinstance(kind, type) or not issubclass(kind, common):
        return False
    own = kind.__mro__[: kind.__mro__.index(common)]
    members = {name: value for parent in own for name, value in vars(parent).items()}
    return all(name == "__init__" or not hasattr(members[name], "__get__") for name in members)


def _checked(settings: Any) -> ImageProcessor:
    """What `settings` of transformers asks for, if mmjax can do that. Raises InputError with the reason if not."""
    steps = {name: value for name, value in vars(settings).items() if name.startswith("do_")}
    for name, value in steps.items():
        if value and name not in _KNOWN_STEPS:
            raise InputError(f"{name} is {value!r}, a step that mmjax does not know")
        if not isinstance(value, bool | None):
            raise InputError(f"{name} must be true or false, not {value!r}")
    factor: Any = settings.rescale_factor if steps["do_rescale"] else None
    if not _is_number(factor) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise InputError("pixels are not divided by 255, which mmjax always does")
    size = dict(settings.size or {}) if steps["do_resize"] else None
    shorter = size and set(size) == {"shortest_edge"} and _is_side(size["shortest_edge"])
    crop = dict(settings.crop_size or {}) if steps["do_center_crop"] else None
    try:
        resample = Pillow.Resampling(settings.resample)
    except ValueError:
        reason = f"resample must be a filter of Pillow, not {settings.resample!r}"
        raise InputError(reason) from None
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if steps["do_normalize"]:
        mean = _channels("image_mean", settings.image_mean)
        std = _channels("image_std", settings.image_std)
        if min(std) <= 0:
            raise InputError(f"image_std must be positive, not {std!r}")
    return ImageProcessor(
        size=size["shortest_edge"] if size and shorter else _rectangle("size", size),
        resample=resample,
        crop=_rectangle("crop_size", crop),
        mean=mean,
        std=std,
    )


def _rectangle(name: str, sides: Mapping[str, Any] | None) -> Size | None:
    if sides is None:
        return None
    if set(sides) != {"height", "width"} or not all(map(_is_side, sides.values())):
        raise InputError(
            f"{name} must be a height and a width, or for size a shortest edge, not {sides!r}"
        )
    return sides["height"], sides["width"]


def _channels(name: str, value: Any) -> Channels:
    value = (value,) * 3 if _is_number(value) else value
    if not isinstance(value, tuple) or len(value) != 3 or not all(map(_is_number, value)):
        raise InputError(f"{name} must be three numbers, not {value!r}")
    return float(value[0]), float(value[1]), float(value[2])


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= 1 << 14


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < _LARGEST_NUMBER
    )
