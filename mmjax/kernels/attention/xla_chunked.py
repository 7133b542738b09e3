"""Attention in plain XLA, tile by tile with a running softmax: memory beside the arguments grows with rows, not with scores.

Forward and backward visit only the tiles in which something is seen. The backward pass makes the weights again from the scores and the
logarithm of their sum, which the forward pass kept (FlashAttention-2, arXiv:2307.08691, algorithms 1 and 2).

Arrays are cut first: A blocks of b batch rows; I tiles of rows, the G query heads of a group one behind the other (R = G x rows); and J
tiles of keys.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from mmjax.kernels.attention.mask import SKIP, IntervalMask, tile_classes
from mmjax.typing import Array, Bool, Float, Int


class Tile(NamedTuple):
    """What is computed at a time.

    Attributes:
        rows, keys: of a tile of scores.
        alone: one batch row after the other, which visits only the tiles that this row needs; or all of them together, which visits what
            any of them needs, and keeps a wide machine busy.
    """

    rows: int
    keys: int
    alone: bool = False


TILES = {"cpu": Tile(256, 256, alone=True)}
"""By backend. On a CPU, the scores of a tile stay in a cache."""

_OTHERWISE = Tile(256, 512)
# Finite, so that a row that sees nothing gives numbers (made zero below) and not NaN.
_MASKED = -1e30


class _Settings(NamedTuple):
    scale: float
    softcap: float | None


class _Mask(NamedTuple):
    """Intervals of rows, and which tiles hold anything that is seen. Where everything is seen, there are none.

    Attributes:
        intervals: (start, end) of each of the one or two intervals.
        order: for each tile of rows, the tiles of keys, those that are visited first; visits: how many those are.
    """

    intervals: tuple[tuple[Int[Array, "A I b R"], Int[Array, "A I b R"]], ...]
    order: Int[Array, "A I J"]
    visits: Int[Array, "A I"]


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask | None,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    batch, length, heads, _ = q.shape
    keys, kv_heads = k.shape[1:3]
    tile = TILES.get(jax.default_backend(), _OTHERWISE)
    rows, wide, together = min(tile.rows, length), min(tile.keys, keys), 1 if tile.alone else batch
    tiles = _tiles(q, together, rows)
    grouped = rearrange(tiles, "A I b R (K G) H -> A I b K (G R) H", K=kv_heads)
    keys_and_values = (_tiles(x, together, wide).swapaxes(3, 4) for x in (k, v))
    prepared = _prepare(mask, (batch, length, keys), (together, rows, wide), heads // kv_heads)
    out = _attend(_Settings(scale, softcap), grouped, *keys_and_values, prepared)
    return rearrange(out, "A I b K (G R) H -> (A b) (I R) (K G) H", R=rows)[:, :length]


def _tiles(values: Array, together: int, size: int) -> Array:
    """[B, T, ...] as [A, tiles, b, size, ...], with zeros behind the last row."""
    padded = jnp.pad(values, ((0, 0), (0, -values.shape[1] % size), *((0, 0),) * (values.ndim - 2)))
    return rearrange(padded, "(A b) (I size) ... -> A I b size ...", b=together, size=size)


def _prepare(
    mask: IntervalMask | None, sizes: tuple[int, int, int], tile: tuple[int, int, int], group: int
) -> _Mask:
    """Of `sizes` (batch rows, query rows, keys) cut into tiles of so many; `group` query heads share keys."""
    (batch, length, keys), (together, rows, wide) = sizes, tile
    blocks, tall, broad = batch // together, -(-length // rows), -(-keys // wide)
    if keys % wide == 0 and (mask is None or mask.form == "full"):
        order = jnp.broadcast_to(jnp.arange(broad, dtype=jnp.int32), (blocks, tall, broad))
        return _Mask((), order, jnp.full((blocks, tall), broad, jnp.int32))
    mask = IntervalMask.full(*sizes) if mask is None else mask
    visited = (
        (tile_classes(mask, keys, rows, wide) != SKIP)
        .reshape(blocks, together, tall, broad)
        .any(axis=1)
    )
    order = jnp.argsort(~visited, axis=2, stable=True).astype(jnp.int32)
    bounds = [
        [jnp.tile(_tiles(bound, together, rows), (1, 1, 1, group)) for bound in interval]
        for interval in mask.intervals
    ]
    return _Mask(
        tuple((start, end) for start, end in bounds), order, visited.sum(axis=2, dtype=jnp.int32)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    settings: _Settings,
    q: Float[Array, "A I b K R H"],
    k: Float[Array, "A J b K W H"],
    v: Float[Array, "A J b K W H"],
    mask: _Mask,
) -> Float[Array, "A I b K R H"]:
    return _forward(settings, q, k, v, mask)[0]  # the gradient keeps more of it


def _forward(settings: _Settings, q: Array, k: Array, v: Array, mask: _Mask) -> tuple[Array, Any]:
    out, log_total = jax.lax.map(lambda block: _forward_block(settings, *block), (q, k, v, mask))
    # In float32 for the gradient: where one weight is near one, the two terms of dS almost cancel, and what was rounded off would remain.
    return out.astype(q.dtype), (q, k, v, mask, out, log_total)


def _forward_block(
    settings: _Settings, q: Array, k: Array, v: Array, mask: _Mask
) -> tuple[Array, Array]:
    def of_rows(tile: tuple[Array, _Mask]) -> tuple[Array, Array]:
        rows, seen_by = tile

        def visit(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            out, top, total = carry
            at = seen_by.order[number]
            scores, seen = _scores(settings, rows, k[at], seen_by, at)
            higher = jnp.maximum(top, scores.max(axis=-1))
            weights = _visible(jnp.exp(scores - higher[..., None]), seen)
            less = jnp.exp(top - higher)
            new = jnp.einsum(
                "bKRW,bKWH->bKRH",
                weights.astype(v.dtype),
                v[at],
                preferred_element_type=jnp.float32,
            )
            return out * less[..., None] + new, higher, total * less + weights.sum(axis=-1)

        nothing = _zeros(rows[..., 0])
        begin = _zeros(rows), nothing + _MASKED, nothing
        out, top, total = jax.lax.fori_loop(0, seen_by.visits, visit, begin)
        total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)  # nothing seen: 0 / tiny
        return out / total[..., None], top + jnp.log(total)

    return jax.lax.map(of_rows, (q, mask))


def _backward(settings: _Settings, kept: Any, gradient: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, mask, out, log_total = kept
    weighted = jnp.einsum("AIbKRH,AIbKRH->AIbKR", out, gradient, preferred_element_type=jnp.float32)
    blocks = q, k, v, mask, gradient, log_total, weighted
    return *jax.lax.map(lambda block: _backward_block(settings, *block), blocks), None


def _backward_block(
    settings: _Settings,
    q: Array,
    k: Array,
    v: Array,
    mask: _Mask,
    gradient: Array,
    log_total: Array,
    weighted: Array,
) -> tuple[Array, Array, Array]:
    def of_rows(carry: tuple[Array, Array], tile: Any) -> tuple[tuple[Array, Array], Array]:
        rows, seen_by, dout, log_sum, delta = tile

        def visit(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            dq, dk, dv = carry
            at = seen_by.order[number]
            scores, seen = _scores(settings, rows, k[at], seen_by, at)
            weights = _visible(jnp.exp(scores - log_sum[..., None]), seen)
            dweights = jnp.einsum(
                "bKRH,bKWH->bKRW", dout, v[at], preferred_element_type=jnp.float32
            )
            dscores = weights * (dweights - delta[..., None]) * settings.scale
            if settings.softcap is not None:
                dscores *= _visible(1 - (scores / settings.softcap) ** 2, seen)
            dscores = dscores.astype(k.dtype)
            dq += jnp.einsum("bKRW,bKWH->bKRH", dscores, k[at], preferred_element_type=jnp.float32)
            return (
                dq,
                dk.at[at].add(_columns(rows, dscores)),
                dv.at[at].add(_columns(dout, weights.astype(v.dtype))),
            )

        dq, dk, dv = jax.lax.fori_loop(0, seen_by.visits, visit, (_zeros(rows), *carry))
        return (dk, dv), dq.astype(q.dtype)

    turned = _zeros(k.swapaxes(-1, -2)), _zeros(v.swapaxes(-1, -2))
    (dk, dv), dq = jax.lax.scan(of_rows, turned, (q, mask, gradient, log_total, weighted))
    return dq, dk.swapaxes(-1, -2).astype(k.dtype), dv.swapaxes(-1, -2).astype(v.dtype)


def _columns(
    narrow: Float[Array, "b K R H"], wide: Float[Array, "b K R W"]
) -> Float[Array, "b K H W"]:
    """narrow^T wide in float32, as in `xla.py`: XLA:CPU is fast at products whose left operand's contracted axis is its last one."""
    return jnp.einsum(
        "bKHR,bKRW->bKHW", narrow.swapaxes(-1, -2), wide, preferred_element_type=jnp.float32
    )


_attend.defvjp(_forward, _backward)


def _scores(
    settings: _Settings, rows: Array, keys: Array, mask: _Mask, tile: Array
) -> tuple[Array, Bool[Array, "b 1 R W"] | None]:
    """Scores of a tile, and which of them are seen; None: all."""
    scores = settings.scale * jnp.einsum(
        "bKRH,bKWH->bKRW", rows, keys, preferred_element_type=jnp.float32
    )
    if settings.softcap is not None:
        scores = settings.softcap * jnp.tanh(scores / settings.softcap)
    if not mask.intervals:
        return scores, None
    place = tile * keys.shape[2] + jnp.arange(keys.shape[2], dtype=jnp.int32)
    seen = [(start[..., None] <= place) & (place < end[..., None]) for start, end in mask.intervals]
    visible = functools.reduce(jnp.logical_or, seen)[:, None]
    return jnp.where(visible, scores, _MASKED), visible


def _zeros(like: Array) -> Array:
    """In float32. They are computed from `like` so that within `jax.shard_map` they count as different on each device, as what is added to
    them does; the compiler sees that they are constant."""
    return jnp.where(like == like, jnp.float32(0), jnp.float32(0))


def _visible(values: Array, seen: Bool[Array, "b 1 R W"] | None) -> Array:
    return values if seen is None else jnp.where(seen, values, 0)
