"""What the kernels read beside the arrays: which tiles to visit, and what every row sees. Made on the device from the mask."""

from typing import NamedTuple

import jax.numpy as jnp

from mmjax.kernels.attention.mask import FULL, PARTIAL, SKIP, IntervalMask, tile_classes
from mmjax.typing import Array, Float, Int


class Visits(NamedTuple):
    """The tiles that each line of tiles visits: first those that need masking, then those in which everything is seen.

    Both loops of a kernel are then without branches, and what nobody sees is neither loaded nor computed.

    Attributes:
        order: [B, lines, tiles] numbers of tiles; what lies behind `counts` is not visited.
        counts: [B, lines, 2]: how many tiles need masking; how many are visited in all.
    """

    order: Int[Array, "B X Y"]
    counts: Int[Array, "B X 2"]


def visits_of_rows(mask: IntervalMask, keys: int, rows_per_tile: int, keys_per_tile: int) -> Visits:
    """For each tile of rows, the tiles of keys."""
    return _visits(tile_classes(mask, keys, rows_per_tile, keys_per_tile))


def visits_of_keys(mask: IntervalMask, keys: int, rows_per_tile: int, keys_per_tile: int) -> Visits:
    """For each tile of keys, the tiles of rows."""
    return _visits(tile_classes(mask, keys, rows_per_tile, keys_per_tile).swapaxes(1, 2))


def _visits(classes: Int[Array, "B X Y"]) -> Visits:
    rank = jnp.select([classes == PARTIAL, classes == FULL], [0, 1], 2)
    order = jnp.argsort(rank, axis=2, stable=True).astype(jnp.int32)
    count = jnp.stack([(classes == PARTIAL).sum(axis=2), (classes != SKIP).sum(axis=2)], axis=2)
    return Visits(order, count.astype(jnp.int32))


def clipped(mask: IntervalMask | None, batch: int, rows: int, keys: int) -> IntervalMask:
    """The mask with every interval within the keys that exist; None: every row sees every key."""
    if mask is None:
        return IntervalMask.full(batch, rows, keys)
    ends = [(jnp.clip(start, 0, keys), jnp.clip(end, 0, keys)) for start, end in mask.intervals]
    return IntervalMask.of(ends)


def padded(rows: int, multiple: int) -> int:
    return -(-rows // multiple) * multiple


def bounds(mask: IntervalMask, rows: int) -> Int[Array, "B P 2 R"]:
    """First and last visible key (exclusive) of the P intervals of each row; rows behind the last, up to `rows`, see nothing."""
    stacked = jnp.stack([jnp.stack(interval, axis=1) for interval in mask.intervals], axis=1)
    return jnp.pad(stacked, ((0, 0), (0, 0), (0, 0), (0, rows - stacked.shape[3])))


def statistics(
    log_total: Float[Array, "B N T"], delta: Float[Array, "B N T"], rows: int
) -> tuple[Float[Array, "B N R"], Float[Array, "B N R"]]:
    """Both with rows up to `rows` that weigh nothing."""
    pad = ((0, 0), (0, 0), (0, rows - delta.shape[2]))
    return jnp.pad(log_total, pad, constant_values=jnp.inf), jnp.pad(delta, pad)
