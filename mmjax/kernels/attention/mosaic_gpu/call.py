"""Attention with its gradient from the kernels, and what a call must be like for them to serve it."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mmjax.kernels import _plgpu as gpu
from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.attention.mosaic_gpu import backward_fused, plan, tuning
from mmjax.kernels.attention.mosaic_gpu.backward_keys import gradient_of_keys
from mmjax.kernels.attention.mosaic_gpu.backward_queries import gradient_of_queries
from mmjax.kernels.attention.mosaic_gpu.forward import forward
from mmjax.typing import Array, Float

_TYPES = (jnp.bfloat16, jnp.float16)


@dataclasses.dataclass(frozen=True)
class _Settings:
    scale: float
    softcap: float | None
    deterministic: bool
    tiles: tuning.Tiles
    interpreter: gpu.Interpreter | None


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask | None,
    scale: float,
    softcap: float | None,
    *,
    deterministic: bool = True,
    tiles: tuning.Tiles | None = None,
    interpreter: gpu.Interpreter | None = None,
) -> Float[Array, "B T N H"]:
    """See `mmjax.kernels.attention.api.attention`.

    What lies in a tile of which something is seen must be finite, seen or not: its weight is zero, and zero times NaN is NaN.

    Args:
        deterministic: gradients have the same bits every time, from two kernels. Otherwise they come from one that does less and adds to
            dq in any order, except where that has no registers left: for heads of 256 it is the two kernels all the same.
        tiles: other sizes than the table's, for tuning and tests.
        interpreter: run on the CPU in the interpreter of Mosaic GPU, for tests.

    Raises:
        ValueError: the kernels cannot serve such a call, whatever the device.
    """
    reason = unsupported(q, k, v, mask, scale, softcap)
    if reason:
        raise ValueError(f"attention on Hopper: {reason}")
    tiles = tiles or tuning.tiles(q.shape[3], masked=mask is not None)
    settings = _Settings(
        float(scale), None if softcap is None else float(softcap), deterministic, tiles, interpreter
    )
    intervals = plan.clipped(mask, q.shape[0], q.shape[1], k.shape[1]).intervals
    return _attend(settings, *(_in_eights(x) for x in (q, k, v)), intervals)[:, : q.shape[1]]


def unsupported(
    q: Array,
    k: Array,
    v: Array,
    mask: IntervalMask | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> str | None:
    """Why the kernels cannot serve a call, in words for its maker; None if they can. Looks at shapes and types only."""
    if not q.ndim == k.ndim == v.ndim == 4:
        return f"q, k and v must be [batch, length, heads, head dimension], not {q.shape}, {k.shape} and {v.shape}"
    if k.shape != v.shape:
        return f"k and v must have the same shape, not {k.shape} and {v.shape}"
    if (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3]):
        return f"q and k must agree in batch and head dimension, unlike {q.shape} and {k.shape}"
    if q.shape[2] % k.shape[2]:
        return f"{q.shape[2]} query heads cannot share {k.shape[2]} key/value heads: the second must divide the first"
    if 0 in (*q.shape, *k.shape):
        return f"empty arrays have no attention: {q.shape}, {k.shape}"
    if q.dtype not in _TYPES or not q.dtype == k.dtype == v.dtype:
        return f"q, k and v must all be bfloat16 or all float16, not {q.dtype}, {k.dtype} and {v.dtype}"
    if q.shape[3] not in tuning.HEAD_DIMENSIONS:
        return f"the head dimension must be one of {', '.join(map(str, tuning.HEAD_DIMENSIONS))}, not {q.shape[3]}"
    if mask is not None and mask.start.shape != q.shape[:2]:
        return f"the mask has rows {mask.start.shape} and q {q.shape[:2]}"
    if not (math.isfinite(scale) and scale > 0):
        return f"the scale must be a positive number, not {scale}"
    if softcap is not None and not (math.isfinite(softcap) and softcap > 0):
        return f"the softcap must be a positive number or None, not {softcap}"
    return None


def _in_eights(values: Float[Array, "B T N H"]) -> Float[Array, "B R N H"]:
    """With zeros behind the last row, up to a multiple of eight: TMA moves tiles of eight rows. What lies behind that, it fills itself."""
    return jnp.pad(values, ((0, 0), (0, -values.shape[1] % 8), (0, 0), (0, 0)))


type _Intervals = tuple[tuple[Array, Array], ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings: _Settings, q: Array, k: Array, v: Array, intervals: _Intervals) -> Array:
    mask = IntervalMask.of(intervals)
    return forward(
        q,
        k,
        v,
        mask,
        settings.scale,
        settings.softcap,
        settings.tiles.forward,
        settings.interpreter,
    )[0]


def _forward(
    settings: _Settings, q: Array, k: Array, v: Array, intervals: _Intervals
) -> tuple[Array, Any]:
    mask = IntervalMask.of(intervals)
    found = forward(
        q,
        k,
        v,
        mask,
        settings.scale,
        settings.softcap,
        settings.tiles.forward,
        settings.interpreter,
        remainder=True,
    )
    # With these names a rematerialisation policy can keep the three, and the forward kernel need not run again.
    names = ("attention_out", "attention_log_total", "attention_remainder")
    out, log_total, remainder = (
        checkpoint_name(array, name) for array, name in zip(found, names, strict=True)
    )
    return out, (q, k, v, intervals, out, log_total, remainder)


def _backward(settings: _Settings, kept: Any, dout: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, intervals, out, log_total, remainder = kept
    # Where one weight is near one, the two terms of dS almost cancel, and what was rounded off the result would remain.
    whole = out.astype(jnp.float32) + remainder.astype(jnp.float32)
    delta = jnp.sum(whole * dout.astype(jnp.float32), axis=3).swapaxes(1, 2)
    arguments = (
        q,
        k,
        v,
        dout,
        log_total,
        delta,
        IntervalMask.of(intervals),
        settings.scale,
        settings.softcap,
    )
    if not settings.deterministic and settings.tiles.fused is not None:
        return *backward_fused.gradients(
            *arguments, settings.tiles.fused, settings.interpreter
        ), None
    dq = gradient_of_queries(*arguments, settings.tiles.queries, settings.interpreter)
    dk, dv = gradient_of_keys(*arguments, settings.tiles.keys, settings.interpreter)
    return dq, dk, dv, None


_attend.defvjp(_forward, _backward)
