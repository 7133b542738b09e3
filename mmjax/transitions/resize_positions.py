"""Interpolation of the encoder's position table, for images of another size."""

from collections.abc import Iterator

from mmjax.errors import InputError
from mmjax.models.config import VLMConfig
from mmjax.models.vit import resize_table
from mmjax.transitions.base import Difference, Transition
from mmjax.transitions.manifest import Entry
from mmjax.typing import Array, Params

PATH = "vision/position"


def resize_positions(
    params: Params, old: VLMConfig, new: VLMConfig, key: Array
) -> tuple[Params, list[Entry]]:
    """Resizes the table with the corners of both grids aligned, as Chain-of-Sight does (torch: `align_corners=True`).

    Raises:
        InputError: the table does not belong to `old`, or only one of the two encoders has a class token.
    """
    del key
    return _resize(params, old, new, align_corners=True)


def resize_positions_half_pixel(
    params: Params, old: VLMConfig, new: VLMConfig, key: Array
) -> tuple[Params, list[Entry]]:
    """Resizes the table with the edges of both grids aligned, patches being areas (torch: `align_corners=False`), as transformers does.

    Raises:
        InputError: as `resize_positions`.
    """
    del key
    return _resize(params, old, new, align_corners=False)


def _resize(
    params: Params, old: VLMConfig, new: VLMConfig, *, align_corners: bool
) -> tuple[Params, list[Entry]]:
    if old.vision.class_token != new.vision.class_token:
        raise InputError(
            "The position table cannot be resized: only one of the two encoders has a class token (vision.class_token)."
        )
    table, rows = params[PATH], old.vision.patches + old.vision.class_token
    if table.shape[0] != rows:
        raise InputError(
            f"The position table has {table.shape[0]} rows, not the {rows} of the stage before; do the stage's transitions resize it twice?"
        )
    before, after = old.vision.grid, new.vision.grid
    if before == after:
        return params, [Entry.of(table, PATH, PATH, "copied", f"same grid of {before} x {before}")]
    resized = resize_table(table, (before, before), (after, after), align_corners=align_corners)
    rule = "corners aligned" if align_corners else "half-pixel centres"
    note = f"{before} x {before} to {after} x {after}, bicubic, {rule}"
    return params | {PATH: resized}, [Entry.of(resized, PATH, PATH, "resized", note)]


def _hints(difference: Difference) -> Iterator[str]:
    resized = {"resize_positions", "resize_positions_half_pixel"} & set(difference.names)
    if PATH in difference.misshapen and not resized:
        yield (
            "the grid of patches changes: 'resize_positions' resizes the position table "
            "(or 'resize_positions_half_pixel')"
        )


TRANSITIONS = (
    Transition("resize_positions", resize_positions, _hints),
    Transition("resize_positions_half_pixel", resize_positions_half_pixel),
)
