"""Bicubic interpolation of a table of positions, for a picture with another number of patches."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.typing import Array, Float

SHARPNESS = -0.75  # the free parameter of the cubic convolution kernel (Keys 1981) that PyTorch and OpenCV use; jax.image.resize uses -0.5


def resize_table(
    table: Float[Array, "positions D"], before: tuple[int, int], after: tuple[int, int], *, align_corners: bool
) -> Float[Array, "resized D"]:
    """A position table over `after` (rows, columns) of patches, from one over `before`; rows before the grid (a class token's) are kept.

    The same numbers as torch's `F.interpolate(mode="bicubic")`, which does not smooth when it shrinks.

    Args:
        align_corners: whether the outermost samples of both grids coincide, or (as in transformers) the edges of their areas.
    """
    extra = table.shape[0] - before[0] * before[1]
    assert extra in (0, 1), f"{table.shape[0]} rows are no grid of {before[0]} x {before[1]}"
    grid = table[extra:].astype(jnp.float32).reshape(*before, -1)
    down, across = (jnp.asarray(interpolation_matrix(*sizes, align_corners=align_corners)) for sizes in zip(before, after, strict=True))
    grid = jnp.einsum("ai,bj,ijd->abd", down, across, grid, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([table[:extra], grid.reshape(after[0] * after[1], -1).astype(table.dtype)])


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
