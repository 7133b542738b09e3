"""Interpolation of the encoder's position table, for pictures of another size."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import InputError
from mmjax.models.config import VLMConfig
from mmjax.transitions.manifest import Entry
from mmjax.typing import Array, Float, Params

PATH = "vision/position"
SHARPNESS = -0.75  # the free parameter of the cubic convolution kernel (Keys 1981) that PyTorch and OpenCV use; jax.image.resize uses -0.5


def resize_positions(params: Params, old: VLMConfig, new: VLMConfig, key: Array) -> tuple[Params, list[Entry]]:
    """Resizes the table with the corners of both grids aligned, as Chain-of-Sight does (torch: `align_corners=True`).

    Raises:
        InputError: the table does not belong to `old`, or only one of the two encoders has a class token.
    """
    del key
    return _resize(params, old, new, align_corners=True)


def resize_positions_half_pixel(params: Params, old: VLMConfig, new: VLMConfig, key: Array) -> tuple[Params, list[Entry]]:
    """Resizes the table with the edges of both grids aligned, patches being areas (torch: `align_corners=False`), as transformers does.

    Raises:
        InputError: as `resize_positions`.
    """
    del key
    return _resize(params, old, new, align_corners=False)


def _resize(params: Params, old: VLMConfig, new: VLMConfig, *, align_corners: bool) -> tuple[Params, list[Entry]]:
    if old.vision.class_token != new.vision.class_token:
        raise InputError("The position table cannot be resized: only one of the two encoders has a class token (vision.class_token).")
    table, rows = params[PATH], old.vision.patches + old.vision.class_token
    if table.shape[0] != rows:
        raise InputError(
            f"The position table has {table.shape[0]} rows, not the {rows} of the stage before; do the stage's transitions resize it twice?"
        )
    before, after = old.vision.grid, new.vision.grid
    if before == after:
        return params, [Entry.of(table, PATH, PATH, "copied", f"same grid of {before} x {before}")]
    resized = resize_table(table, before, after, align_corners=align_corners)
    rule = "corners aligned" if align_corners else "half-pixel centres"
    note = f"{before} x {before} to {after} x {after}, bicubic, {rule}"
    return params | {PATH: resized}, [Entry.of(resized, PATH, PATH, "resized", note)]


def resize_table(table: Float[Array, "positions D"], before: int, after: int, *, align_corners: bool) -> Float[Array, "resized D"]:
    """A position table over `after` x `after` patches, from one over `before` x `before`; rows before the grid (a class token's) are kept.

    The same numbers as torch's `F.interpolate(mode="bicubic")`, which does not smooth when it shrinks.
    """
    extra = table.shape[0] - before**2
    assert extra in (0, 1), f"{table.shape[0]} rows are no grid of {before} x {before}"
    grid = table[extra:].astype(jnp.float32).reshape(before, before, -1)
    along = jnp.asarray(interpolation_matrix(before, after, align_corners=align_corners))
    grid = jnp.einsum("ai,bj,ijd->abd", along, along, grid, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([table[:extra], grid.reshape(after**2, -1).astype(table.dtype)])


def interpolation_matrix(before: int, after: int, *, align_corners: bool) -> Float[np.ndarray, "after before"]:
    """Weights (float32) that interpolate `before` samples at `after` points; each row sums to 1.

    Beyond the border the outermost sample is repeated.
    """
    points = np.arange(after, dtype=np.float64)
    if align_corners:
        points *= (before - 1) / max(after - 1, 1)
    else:
        points = (points + 0.5) * (before / after) - 0.5
    first = np.floor(points).astype(np.int64) - 1  # the cubic kernel reaches two samples to either side
    matrix = np.zeros((after, before))
    for tap in range(4):
        sample = np.clip(first + tap, 0, before - 1)
        np.add.at(matrix, (np.arange(after), sample), _cubic(points - (first + tap)))
    return matrix.astype(np.float32)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Cubic convolution kernel (Keys, IEEE TASSP 1981, eq. 15, with its parameter free)."""
    x, a = np.abs(distance), SHARPNESS
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
