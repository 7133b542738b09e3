"""Arithmetic on a tile of scores in registers, shared by the forward and the backward kernels.

A tile is [rows, keys] in the kernels that own rows, and [keys, rows] in the one that owns keys; `key_axis` says which. Weights are powers
of two: the factor log2(e) is folded into the scale.
"""

import functools
import math

import jax
import jax.numpy as jnp

from mmjax.kernels import _plgpu as gpu

LOG2_E = math.log2(math.e)

LOWEST = -1e30
"""Where the running maximum of a row begins: finite, so that no difference of two of them is NaN."""


Interval = tuple[jax.Array, jax.Array]
"""First key that each row sees, and the one behind the last."""


def bounded(scores: jax.Array, scale: float, softcap: float | None) -> jax.Array:
    """tanh(scale x scores / softcap), or the scores as they are.

    tanh x = 1 - 2 / (1 + e^2x), with the reciprocal as the square of an approximate reciprocal root: errors of 1e-7 where the tanh
    instruction of the GPU has 5e-4, which a softcap of 50 would turn into 2% of a weight.
    """
    if softcap is None:
        return scores
    root = jax.lax.rsqrt(1 + jnp.exp2(scores * (2 * scale / softcap * LOG2_E)))
    return 1 - 2 * (root * root)


def factor(scale: float, softcap: float | None) -> float:
    """What turns `bounded` scores into exponents of two."""
    return (scale if softcap is None else softcap) * LOG2_E


def along(values: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
    """One value per row (axis 0) or per column (axis 1), for a whole tile."""
    return jax.lax.broadcast_in_dim(values, shape, [axis])


def load_bounds(bounds: gpu.Ref, layout: gpu.VectorLayout) -> list[Interval]:
    """(start, end) of the intervals of some rows, from bounds [P, 2, R]."""
    start, end = 0, 1
    numbers = range(bounds.shape[0])
    return [
        (load_rows(bounds.at[number, start], layout), load_rows(bounds.at[number, end], layout))
        for number in numbers
    ]


def load_rows(values: gpu.Ref, layout: gpu.VectorLayout) -> jax.Array:
    """One number per row, also from global memory."""
    return gpu.load(values, layout=layout, optimized=False)


def hidden(
    scores: jax.Array, intervals: list[Interval], first_key: jax.Array, key_axis: int
) -> jax.Array:
    """The scores, with minus infinity where the row does not see the key."""
    keys = (
        gpu.broadcasted_iota(jnp.int32, scores.shape, key_axis, layout=gpu.Layout.WGMMA) + first_key
    )
    row_axis = 1 - key_axis
    seen = [
        (along(start, scores.shape, row_axis) <= keys) & (keys < along(end, scores.shape, row_axis))
        for start, end in intervals
    ]
    return jnp.where(functools.reduce(jnp.logical_or, seen), scores, -jnp.inf)


def sloped(weight: jax.Array, bounded: jax.Array, softcap: float | None) -> jax.Array:
    """Weights times the slope of the softcap: what the gradient of the scores is proportional to, (P slope) (dP - delta)."""
    return weight if softcap is None else weight * (1 - bounded * bounded)


def roomy(head_dim: int, softcap: float | None, masked: bool) -> bool:
    """Whether a gradient's step leaves registers for a second product while the first one becomes weights."""
    return not masked or (softcap is None and head_dim <= 128)
