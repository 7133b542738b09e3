"""Attention in plain XLA, tile by tile with a running softmax: memory beside the arguments grows with rows, not with scores.

Forward and backward visit only the tiles in which some row of the batch sees something. The backward pass makes the weights again from the
scores and the logarithm of their sum, which the forward pass kept (FlashAttention-2, arXiv:2307.08691, algorithms 1 and 2).

Arrays are cut into tiles first: I of rows, the G query heads of a group one behind the other (R = G x rows), and J of keys.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.attention.tiles import SKIP, tile_classes
from mmjax.typing import Array, Bool, Float, Int

ROWS, KEYS = 256, 512
"""Of a tile."""

_MASKED = -1e30  # finite, so that a row that sees nothing gives numbers (made zero below) and not NaN


class _Settings(NamedTuple):
    scale: float
    softcap: float | None


class _Mask(NamedTuple):
    """Intervals of rows, and which tiles hold anything that is seen.

    Attributes:
        intervals: (start, end) of each of the one or two intervals.
        order: for each tile of rows, the tiles of keys, those that are visited first; visits: how many those are.
    """

    intervals: tuple[tuple[Int[Array, "I B R"], Int[Array, "I B R"]], ...]
    order: Int[Array, "I J"]
    visits: Int[Array, "I"]


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask | None,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    batch, length, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    rows, wide = min(ROWS, length), min(KEYS, keys)
    mask = IntervalMask.full(batch, length, keys) if mask is None else mask
    grouped = _tiles(q, rows).reshape(-1, batch, rows, kv_heads, heads // kv_heads, head_dim).transpose(0, 1, 3, 4, 2, 5)
    grouped = grouped.reshape(-1, batch, kv_heads, grouped.shape[3] * rows, head_dim)
    keys_and_values = (_tiles(x, wide).swapaxes(2, 3) for x in (k, v))
    out = _attend(_Settings(scale, softcap), grouped, *keys_and_values, _prepare(mask, keys, rows, wide, heads // kv_heads))
    out = out.reshape(-1, batch, kv_heads, heads // kv_heads, rows, head_dim).transpose(1, 0, 4, 2, 3, 5)
    return out.reshape(batch, -1, heads, head_dim)[:, :length]


def _tiles(values: Array, size: int) -> Array:
    """[B, T, ...] as [tiles, B, size, ...], with zeros behind the last row."""
    padded = jnp.pad(values, ((0, 0), (0, -values.shape[1] % size), *((0, 0),) * (values.ndim - 2)))
    return padded.reshape(values.shape[0], -1, size, *values.shape[2:]).swapaxes(0, 1)


def _prepare(mask: IntervalMask, keys: int, rows: int, wide: int, group: int) -> _Mask:
    visited = (tile_classes(mask, keys, rows, wide) != SKIP).any(axis=0)
    order = jnp.argsort(~visited, axis=1, stable=True).astype(jnp.int32)
    tiled = tuple((_tiles(start, rows), _tiles(end, rows)) for start, end in mask.intervals)
    intervals = tuple((jnp.tile(start, (1, 1, group)), jnp.tile(end, (1, 1, group))) for start, end in tiled)
    return _Mask(intervals, order, visited.sum(axis=1, dtype=jnp.int32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    settings: _Settings, q: Float[Array, "I B K R H"], k: Float[Array, "J B K W H"], v: Float[Array, "J B K W H"], mask: _Mask
) -> Float[Array, "I B K R H"]:
    return _forward(settings, q, k, v, mask)[0]


def _forward(settings: _Settings, q: Array, k: Array, v: Array, mask: _Mask) -> tuple[Array, Any]:
    def of_rows(tile: tuple[Array, _Mask]) -> tuple[Array, Array]:
        rows, seen_by = tile

        def visit(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            out, top, total = carry
            at = seen_by.order[number]
            scores, seen = _scores(settings, rows, k[at], _seen(seen_by, at, k.shape[3]))
            higher = jnp.maximum(top, scores.max(axis=-1))
            weights = jnp.where(seen, jnp.exp(scores - higher[..., None]), 0)
            less = jnp.exp(top - higher)
            new = jnp.einsum("BKRW,BKWH->BKRH", weights.astype(v.dtype), v[at], preferred_element_type=jnp.float32)
            return out * less[..., None] + new, higher, total * less + weights.sum(axis=-1)

        nothing = jnp.zeros(rows.shape[:-1], jnp.float32)
        begin = jnp.zeros(rows.shape, jnp.float32), nothing + _MASKED, nothing
        out, top, total = jax.lax.fori_loop(0, seen_by.visits, visit, begin)
        total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)  # nothing seen: 0 / tiny
        return (out / total[..., None]).astype(q.dtype), top + jnp.log(total)

    out, log_total = jax.lax.map(of_rows, (q, mask))
    return out, (q, k, v, mask, out, log_total)


def _backward(settings: _Settings, kept: Any, gradient: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, mask, out, log_total = kept
    weighted = jnp.einsum("IBKRH,IBKRH->IBKR", out, gradient, preferred_element_type=jnp.float32)

    def of_rows(carry: tuple[Array, Array], tile: Any) -> tuple[tuple[Array, Array], Array]:
        rows, seen_by, dout, log_sum, delta = tile

        def visit(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            dq, dk, dv = carry
            at = seen_by.order[number]
            scores, seen = _scores(settings, rows, k[at], _seen(seen_by, at, k.shape[3]))
            weights = jnp.where(seen, jnp.exp(scores - log_sum[..., None]), 0)
            dweights = jnp.einsum("BKRH,BKWH->BKRW", dout, v[at], preferred_element_type=jnp.float32)
            dscores = weights * (dweights - delta[..., None]) * settings.scale
            if settings.softcap is not None:
                dscores *= jnp.where(seen, 1 - (scores / settings.softcap) ** 2, 0)
            dscores = dscores.astype(k.dtype)
            dq += jnp.einsum("BKRW,BKWH->BKRH", dscores, k[at], preferred_element_type=jnp.float32)
            dk = dk.at[at].add(jnp.einsum("BKRW,BKRH->BKWH", dscores, rows, preferred_element_type=jnp.float32))
            dv = dv.at[at].add(jnp.einsum("BKRW,BKRH->BKWH", weights.astype(v.dtype), dout, preferred_element_type=jnp.float32))
            return dq, dk, dv

        dq, dk, dv = jax.lax.fori_loop(0, seen_by.visits, visit, (jnp.zeros(rows.shape, jnp.float32), *carry))
        return (dk, dv), dq.astype(q.dtype)

    begin = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    (dk, dv), dq = jax.lax.scan(of_rows, begin, (q, mask, gradient, log_total, weighted))
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_forward, _backward)


def _scores(settings: _Settings, rows: Array, keys: Array, seen: Array) -> tuple[Float[Array, "B K R W"], Bool[Array, "B 1 R W"]]:
    scores = settings.scale * jnp.einsum("BKRH,BKWH->BKRW", rows, keys, preferred_element_type=jnp.float32)
    if settings.softcap is not None:
        scores = settings.softcap * jnp.tanh(scores / settings.softcap)
    return jnp.where(seen, scores, _MASKED), seen


def _seen(mask: _Mask, tile: Array, wide: int) -> Bool[Array, "B 1 R W"]:
    place = tile * wide + jnp.arange(wide, dtype=jnp.int32)
    seen = [(start[..., None] <= place) & (place < end[..., None]) for start, end in mask.intervals]
    return functools.reduce(jnp.logical_or, seen)[:, None]
