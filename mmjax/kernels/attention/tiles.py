"""What a mask means for the tiles and the keys of a kernel: which tiles it can leave out, which need no masking, which rows see a key.

All of it is computed on the device from the intervals, in memory that grows with tiles and not with scores, so that masks may differ from
batch to batch without compiling again.
"""

import jax
import jax.numpy as jnp

from mmjax.kernels.attention.mask import IntervalMask
from mmjax.typing import Array, Int

SKIP, PARTIAL, FULL = 0, 1, 2
"""A tile of which no row sees any key; some rows see some keys; every row sees every key."""


def tile_classes(mask: IntervalMask, keys: int, rows_per_tile: int, keys_per_tile: int) -> Int[Array, "B I J"]:
    """SKIP, PARTIAL or FULL for every tile of scores. Rows behind the last see what the others of their tile see; keys behind the last are
    seen by nobody."""
    rows = mask.start.shape[1]
    tiles = -(-keys // keys_per_tile)
    begin = jnp.arange(tiles, dtype=jnp.int32) * keys_per_tile
    intervals = [(start[..., None], end[..., None]) for start, end in mask.intervals]
    seen = sum(_overlap(start, end, begin, begin + keys_per_tile) for start, end in intervals)
    if len(intervals) == 2:  # what both hold counts once
        (start, end), (other_start, other_end) = intervals
        both = jnp.maximum(start, other_start), jnp.minimum(end, other_end)
        seen -= _overlap(*both, begin, begin + keys_per_tile)
    pad = ((0, 0), (0, -rows % rows_per_tile), (0, 0))
    some = _by_tile(jnp.pad(seen > 0, pad, constant_values=False), rows_per_tile).any(axis=2)
    every = _by_tile(jnp.pad(seen == keys_per_tile, pad, constant_values=True), rows_per_tile).all(axis=2)
    return jnp.where(every, FULL, jnp.where(some, PARTIAL, SKIP)).astype(jnp.int32)


def rows_of_keys(mask: IntervalMask, keys: int) -> tuple[Int[Array, "B S"], Int[Array, "B S"]]:
    """For each key the least interval of rows [first, last) that holds all rows that see it: [0, 0) if none does.

    Every row takes part in one minimum for each of the two halves, of a power-of-two length, that its interval is the union of; then the
    halves are halved again, down to single keys: (T + S) log S steps instead of T S.
    """
    rows = jnp.arange(mask.start.shape[1], dtype=jnp.int32)
    nobody = jnp.int32(len(rows))
    first = jnp.full((mask.start.shape[0], keys), nobody)
    last = jnp.full((mask.start.shape[0], keys), jnp.int32(-1))
    for start, end in mask.intervals:
        first = jnp.minimum(first, _spread(start, end, rows, keys, nobody))
        last = jnp.maximum(last, -_spread(start, end, -rows, keys, jnp.int32(1)))
    seen = last >= 0
    return jnp.where(seen, first, 0), jnp.where(seen, last + 1, 0)


def _spread(start: Array, end: Array, values: Array, keys: int, nothing: Array) -> Array:
    """The least of the values whose intervals [start, end) hold a key, for every key."""
    length = end - start
    level = jnp.where(length > 0, 31 - jax.lax.clz(jnp.maximum(length, 1)), -1)
    batch = jnp.arange(start.shape[0])[:, None]
    least = jnp.full((start.shape[0], keys), nothing)
    for power in reversed(range(max(keys, 1).bit_length())):
        width = 1 << power
        shifted = jnp.pad(least, ((0, 0), (width, 0)), constant_values=nothing)[:, :keys]
        least = jnp.minimum(least, shifted)  # what was said of blocks twice as long holds for both their halves
        for place in (start, end - width):
            at = jnp.where(level == power, place, keys)  # out of range: dropped
            least = least.at[batch, at].min(jnp.broadcast_to(values, at.shape), mode="drop")
    return least


def _overlap(start: Array, end: Array, begin: Array, stop: Array) -> Array:
    return jnp.maximum(jnp.minimum(end, stop) - jnp.maximum(start, begin), 0)


def _by_tile(rows: Array, rows_per_tile: int) -> Array:
    return rows.reshape(rows.shape[0], -1, rows_per_tile, rows.shape[2])
