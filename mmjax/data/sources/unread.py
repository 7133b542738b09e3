"""What a record says beyond what its source reads: other media, the places where they stand, and how much of it is to be learned.

A record that shows a video and is read without it teaches an answer to what the model never saw. So what a source does not read makes a
record unusable where it changes what the record means. All other keys, such as a category or a licence, are left alone.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmjax.data.examples import SampleError

IMAGE_PLACEHOLDER = "<image>"

_MEDIA = re.compile(
    r"(videos?|audios?|speech(es)?|sounds?|frames?|images|point_?clouds?)(_(path|file|url)s?)?",
    re.I,
)
_SHOWN = re.compile(r"(image|img|picture|photo)(_?(path|file|name|url))?|file_?name", re.I)
"""Names under which others give an image; where a record has one under its own name, they say where that comes from."""
_MEDIA_FILE = re.compile(
    r".+\.(png|jpe?g|webp|gif|bmp|tiff?|heic|avif|mp4|m4v|avi|mov|mkv|webm|wav|mp3|flac|ogg|m4a)",
    re.I,
)
_CONTEXT = frozenset(
    {"system", "system_prompt", "tools", "functions", "tool_calls", "function_call"}
)
_PREFERENCE = frozenset({"chosen", "rejected", "kto_tag"})
_WEIGHTS = (
    "weight",
    *("loss", "train", "trainable"),
    *("loss_weight", "loss_scale", "loss_mask", "train_detail"),
)
"""Keys that say how much of a turn, or of a record, is to be learned."""

_MARK = re.compile(
    r"<\|?(image|img|video|audio|speech|sound|vision|point_?cloud|point)"
    r"([ _-]?(start|pad|placeholder|here|token|soft_token|\d+))?\|?>|<start_of_image>",
    re.I,
)
"""Marks of media in the manner of published models: <video>, <image_1>, <|audio_pad|>."""


def check_keys(
    record: Mapping[str, Any], read: frozenset[str], others: frozenset[str] = frozenset()
) -> None:
    """Raises SampleError if a record has keys that are not read, and matter.

    Args:
        read: keys that the source reads.
        others: more keys that matter.
    """
    matters = _CONTEXT | _PREFERENCE | others
    has_image = "image" in read and bool(record.get("image"))
    for key, value in record.items():
        if key in read or value is None or value in ("", [], {}):
            continue  # read, or empty
        media = _MEDIA.fullmatch(key) or (
            not has_image
            and (_SHOWN.fullmatch(key) or any(map(_MEDIA_FILE.fullmatch, _texts(value))))
        )
        if media and value:
            raise SampleError("media that are not read", f"the key {key!r} is {str(value)[:80]}")
        if key in matters:
            raise SampleError("key that is not read", f"the key {key!r} is {str(value)[:80]}")


def check_marks(text: str, *, images: bool) -> None:
    """Raises SampleError if a text has a mark where some medium stands that is not read.

    Args:
        images: whether IMAGE_PLACEHOLDER is read.
    """
    for match in _MARK.finditer(text):
        if not images or match[0] != IMAGE_PLACEHOLDER:
            raise SampleError("media that are not read", f"there is a mark {match[0]} in a text")


def is_learned(said: Mapping[str, Any], *, by_assistant: bool = True) -> bool:
    """Whether a turn, or a record, is to be learned. Raises SampleError if only a part of it is, or what nobody learns.

    Args:
        by_assistant: only then can it be learned.
    """
    learned = True
    for key in _WEIGHTS:
        value = said.get(key)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise SampleError(
                "weight that is neither 0 nor 1", f"the key {key!r} is {str(value)[:80]}"
            )
        if value and not by_assistant and key != "weight":
            raise SampleError("loss where the assistant does not speak", f"the key {key!r} is true")
        learned = learned and bool(value)
    return learned


def _texts(value: Any) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield item
