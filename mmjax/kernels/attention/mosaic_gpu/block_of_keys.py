"""What the backward kernels that own keys have in common: a block owns a tile of keys of one key/value head and walks along the tiles of
rows that see them, of every query head of the group in turn, so that the gradients of keys and values leave once.

Tiles of scores are [keys, rows] here, S^T = K Q^T: then P^T and dS^T already lie as the next products want their left operand in registers
(dV = P^T dO, dK = dS^T Q).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.kernels import _plgpu as gpu
from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.attention.mosaic_gpu import plan, scores
from mmjax.kernels.attention.mosaic_gpu.block import COMPUTING, Block, Warpgroup
from mmjax.kernels.attention.mosaic_gpu.ring import Ring
from mmjax.kernels.attention.mosaic_gpu.tuning import Tile
from mmjax.typing import Array, Float

Totals = tuple[jax.Array, ...]
"""Sums of gradients of keys or values, [keys, H] each in float32."""


class Visit(NamedTuple):
    """One tile of rows of one head: which head of the group, which tile of those that are visited, which visit of all."""

    member: jax.Array
    number: jax.Array
    of_all: jax.Array


Step = Callable[[Visit, jax.Array | None, Totals], Totals]
"""Adds what a visit gives to the sums; the array is the first key that is owned, or None where every row sees every key."""


class Memory(NamedTuple):
    """Of a block; k and v also hold the results in the end.

    With the rows of q come what they see and their log-sum-exp, with those of dout their delta. finished: nobody reads k and v any more.
    """

    k: gpu.Ref
    v: gpu.Ref
    keys_arrived: gpu.Ref
    q: Ring
    dout: Ring
    finished: gpu.Ref
    spare: gpu.Ref | None

    @classmethod
    def of(cls, q: Array, intervals: int, tile: Tile, interpreted: bool) -> "Memory":
        """For q [B, T, N, H] and a mask of so many intervals."""
        head_dim = q.shape[3]
        own = gpu.matrix_memory((parts(tile), tile.keys, head_dim), q.dtype)
        walked = gpu.matrix_memory((tile.stages, tile.rows, head_dim), q.dtype)
        numbers = gpu.SharedMemory((tile.stages, tile.rows), jnp.float32)
        bounds = gpu.SharedMemory((tile.stages, intervals, 2, tile.rows), jnp.int32)
        return cls(
            k=own,
            v=own,
            keys_arrived=gpu.Barrier(num_arrivals=2, num_barriers=COMPUTING),
            q=Ring.of(walked, bounds, numbers, readers=COMPUTING),
            dout=Ring.of(walked, numbers, readers=COMPUTING),
            finished=gpu.Barrier(num_arrivals=COMPUTING),
            spare=gpu.matrix_memory((COMPUTING, tile.keys, tile.rows), q.dtype)
            if interpreted
            else None,
        )


def parts(tile: Tile) -> int:
    """Tiles of keys that a block owns."""
    return 1 if tile.split else COMPUTING


def operands(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    dout: Float[Array, "B T N H"],
    log_total: Float[Array, "B N T"],
    delta: Float[Array, "B N T"],
    mask: IntervalMask,
    tile: Tile,
) -> tuple[tuple[Array, ...], tuple[int, int, int]]:
    """What a `BlockOfKeys` begins with, and the grid."""
    padded = plan.padded(q.shape[1], tile.rows)
    visits = plan.visits_of_keys(mask, k.shape[1], tile.rows, parts(tile) * tile.keys)
    arrays = (
        q,
        k,
        v,
        dout,
        *plan.statistics(log_total, delta, padded),
        plan.bounds(mask, padded),
        visits.order,
        visits.counts,
    )
    return arrays, (k.shape[2], visits.order.shape[1], q.shape[0])


@dataclasses.dataclass(frozen=True)
class BlockOfKeys(Block):
    """See the module."""

    q: gpu.Ref
    k: gpu.Ref
    v: gpu.Ref
    dout: gpu.Ref
    log_total: gpu.Ref
    delta: gpu.Ref
    bounds: gpu.Ref
    order: gpu.Ref
    count: gpu.Ref
    _: dataclasses.KW_ONLY
    scale: float
    softcap: float | None
    group: int
    apart: bool

    def fetch(self) -> None:
        batch, kv_head, line = self.place()
        memory = self.memory
        visited = self.visits()[1]
        parts, keys_of_part = memory.k.shape[:2]
        for part in range(parts):
            keys = gpu.span((line * parts + part) * keys_of_part, keys_of_part)
            gpu.copy_in(
                self.k.at[batch, keys, kv_head], memory.k.at[part], memory.keys_arrived.at[part]
            )
            gpu.copy_in(
                self.v.at[batch, keys, kv_head], memory.v.at[part], memory.keys_arrived.at[part]
            )

        def step(number: jax.Array, _: None, member: jax.Array) -> None:
            visit = member * visited + number
            rows, head = self.rows(Visit(member, number, visit))
            seen, log_total = (
                self.bounds.at[batch, :, :, rows],
                self.log_total.at[batch, head, rows],
            )
            memory.q.fetch(visit, self.q.at[batch, rows, head], seen, log_total)
            memory.dout.fetch(
                visit, self.dout.at[batch, rows, head], self.delta.at[batch, head, rows]
            )

        def of_head(member: jax.Array, _: None) -> None:
            jax.lax.fori_loop(0, visited, functools.partial(step, member=member), None)

        jax.lax.fori_loop(0, self.group, of_head, None)
        memory.q.drain(self.group * visited)
        memory.dout.drain(self.group * visited)

    def rows(self, visit: Visit) -> tuple[Any, jax.Array]:
        """Which rows a visit is of, and of which head."""
        batch, kv_head, line = self.place()
        width = self.memory.q.memory[0].shape[1]
        return gpu.span(
            self.order[batch, line, visit.number] * width, width
        ), kv_head * self.group + visit.member

    def walk(self, part: Warpgroup, sums: int, step: Step) -> Totals:
        """The sums over all tiles of rows that see any of the block's part-th tile of keys, or of its other one."""
        memory = self.memory
        _, width, head_dim = memory.k.shape
        first_key = self.first_key(part)
        masked, visited = self.visits()
        gpu.barrier_wait(memory.keys_arrived.at[part])

        def of_head(member: jax.Array, totals: Totals) -> Totals:
            before = member * visited

            def one(first_key: jax.Array | None, number: jax.Array, totals: Totals) -> Totals:
                return step(Visit(member, number, gpu.opaque(before + number)), first_key, totals)

            totals = jax.lax.fori_loop(0, masked, functools.partial(one, first_key), totals)
            return jax.lax.fori_loop(masked, visited, functools.partial(one, None), totals)

        zero = gpu.layout_cast(jnp.zeros((width, head_dim), jnp.float32), gpu.Layout.WGMMA)
        return jax.lax.fori_loop(0, self.group, of_head, (zero,) * sums)

    def first_key(self, part: Warpgroup) -> jax.Array:
        parts, width = self.memory.k.shape[:2]
        return (self.place()[2] * parts + part) * width

    def roomy(self, masked: bool) -> bool:
        """See `scores.roomy`."""
        return scores.roomy(self.memory.k.shape[2], self.softcap, masked)

    def weights(
        self, first_key: jax.Array | None, seen: gpu.Ref, log_total: gpu.Ref, raw: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """P^T of a tile from its raw scores, rounded; and in full, times the slope of the softcap."""
        bounded = exponents = scores.bounded(raw, self.scale, self.softcap)
        if first_key is not None:
            exponents = scores.hidden(
                exponents, scores.load_bounds(seen, gpu.COLUMNS), first_key, key_axis=0
            )
        log_total = scores.along(scores.load_rows(log_total, gpu.COLUMNS), raw.shape, 1)
        weight = jnp.exp2(exponents * scores.factor(self.scale, self.softcap) - log_total)
        return weight.astype(self.v.dtype), scores.sloped(weight, bounded, self.softcap)

    def weights_and_slopes(
        self, part: Warpgroup, visit: Visit, first_key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """P^T and dS^T of a tile whose arrival has been awaited, both rounded."""
        memory = self.memory
        (q, seen, log_total), (dout, delta) = (
            memory.q.of_visit(visit.of_all),
            memory.dout.of_visit(visit.of_all),
        )
        weights = functools.partial(self.weights, first_key, seen, log_total)
        together = self.roomy(masked=first_key is not None)
        k_q, v_dout = (
            (memory.k.at[part], q.transpose((1, 0))),
            (memory.v.at[part], dout.transpose((1, 0))),
        )
        (rounded, slope), dweight = gpu.two_products(k_q, v_dout, weights, together=together)
        dscores = slope * (
            dweight - scores.along(scores.load_rows(delta, gpu.COLUMNS), slope.shape, 1)
        )
        return rounded, dscores.astype(self.k.dtype)

    def store(self, part: Warpgroup, results: list[tuple[jax.Array, gpu.Ref, gpu.Ref]]) -> None:
        """Writes sums [keys, H], each by way of shared memory [parts, keys, H], to an array like k."""
        batch, kv_head, _ = self.place()
        keys = gpu.span(self.first_key(part), self.memory.k.shape[1])
        for total, staged, _ in results:
            staged.at[part][...] = total.astype(self.k.dtype)
        gpu.commit_shared()
        for _, staged, target in results:
            gpu.copy_out(staged.at[part], target.at[batch, keys, kv_head])
        gpu.wait_copies_out(0)
