"""All three gradients in one kernel, with five products of matrices per tile where the two deterministic kernels need seven.

A `BlockOfKeys` that makes P^T and dS^T of a tile once: dk and dv grow in registers, and what the tile gives to dq is added to global memory
in float32 (as in FlashAttention-2, arXiv:2307.08691, section 3.1.2 and algorithm 2). Blocks add in the order in which they come, so
that dq may differ in its last bits from run to run; dk and dv do not.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.kernels import _plgpu as gpu
from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.attention.mosaic_gpu import block_of_keys
from mmjax.kernels.attention.mosaic_gpu.block import COMPUTING, Warpgroup, launch
from mmjax.kernels.attention.mosaic_gpu.block_of_keys import BlockOfKeys, Memory, Totals, Visit
from mmjax.kernels.attention.mosaic_gpu.ring import Ring
from mmjax.kernels.attention.mosaic_gpu.tuning import Tile
from mmjax.typing import Array, Float

_SLOTS = 2
"""Tiles of dS on their way. The computing warpgroups take turns to multiply them by the keys, each those of the slot of its number."""

_ROOMY = 96
"""Largest heads for which registers suffice for both products of a step at a time."""


class _Memory(NamedTuple):
    """That of `BlockOfKeys`, and: dscores [slots, parts, keys, rows], when both warpgroups have written to a slot, and one tile of dq."""

    k: gpu.Ref
    v: gpu.Ref
    keys_arrived: gpu.Ref
    q: Ring
    dout: Ring
    finished: gpu.Ref
    spare: gpu.Ref | None
    dscores: gpu.Ref
    written: gpu.Ref
    dq: gpu.Ref


def gradients(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    dout: Float[Array, "B T N H"],
    log_total: Float[Array, "B N T"],
    delta: Float[Array, "B N T"],
    mask: IntervalMask,
    scale: float,
    softcap: float | None,
    tile: Tile,
    interpreter: gpu.Interpreter | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """dq, dk and dv; see `gradient_of_queries` and `gradient_of_keys` for what they are."""
    arrays, grid = block_of_keys.operands(q, k, v, dout, log_total, delta, mask, tile)
    memory = _Memory(
        *Memory.of(q, len(mask.intervals), tile, interpreted=interpreter is not None),
        # Operands of one product have the same swizzle, and the other one of dS K is as wide as a head.
        dscores=gpu.matrix_memory(
            (_SLOTS, COMPUTING, tile.keys, tile.rows), q.dtype, gpu.swizzle(q.shape[3], q.dtype)
        ),
        written=gpu.Barrier(num_arrivals=COMPUTING, num_barriers=_SLOTS),
        dq=gpu.matrix_memory((tile.rows, q.shape[3]), jnp.float32),
    )
    block = functools.partial(
        _Block, scale=scale, softcap=softcap, group=q.shape[2] // k.shape[2], apart=tile.apart
    )
    out_type = (jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype))
    kernel = launch(block, "attention_backward_fused", out_type, memory, grid, interpreter)
    dq = gpu.new_ref(jnp.zeros(q.shape, jnp.float32))
    dk, dv = kernel(*arrays, dq)
    return (gpu.freeze(dq) * scale).astype(q.dtype), dk, dv


@dataclasses.dataclass(frozen=True)
class _Block(BlockOfKeys):
    dq: gpu.Ref
    dk: gpu.Ref
    dv: gpu.Ref
    memory: _Memory

    def compute(self, warpgroup: Warpgroup) -> None:
        memory = self.memory
        dk, dv = self.walk(warpgroup, 2, functools.partial(self.step, warpgroup))
        gpu.barrier_arrive(memory.finished)
        gpu.barrier_wait(memory.finished)
        self.store(warpgroup, [(dk * self.scale, memory.k, self.dk), (dv, memory.v, self.dv)])

    def step(
        self, warpgroup: Warpgroup, visit: Visit, first_key: jax.Array | None, totals: Totals
    ) -> Totals:
        """The warpgroup's own part of a tile's dS^T, for its dk and for the warpgroup that adds to dq; and every other time, that.

        The warpgroup that waits for the other's part of visit n also knows that it has added visit n - 1 (it wrote its part later than
        that): dS of visit n + 1 may take that slot, and dq of visit n the memory of dq.
        """
        memory = self.memory
        warpgroup = gpu.opaque(jnp.asarray(warpgroup))
        slot = gpu.opaque(jax.lax.rem(visit.of_all, jnp.int32(_SLOTS)))
        (q, *_), (dout, _) = memory.q.of_visit(visit.of_all), memory.dout.of_visit(visit.of_all)
        memory.q.wait(visit.of_all)
        memory.dout.wait(visit.of_all)
        rounded, dscores = self.weights_and_slopes(warpgroup, visit, first_key)
        memory.dscores.at[slot, warpgroup][...] = dscores
        gpu.commit_shared()
        gpu.wait_copies_out(0, wait_read_only=True)
        gpu.barrier_arrive(memory.written.at[slot])
        spare = None if memory.spare is None else memory.spare.at[warpgroup]
        totals = gpu.add_products([(totals[0], dscores, q), (totals[1], rounded, dout)], spare)
        memory.q.release(visit.of_all)
        memory.dout.release(visit.of_all)
        gpu.when(slot == warpgroup)(functools.partial(self.add, slot, *self.rows(visit)))
        return totals

    def roomy(self, masked: bool) -> bool:
        return self.memory.k.shape[2] <= _ROOMY and super().roomy(masked)

    def add(self, slot: jax.Array, rows: gpu.Ref, head: jax.Array) -> None:
        """dq += dS K of a tile, over all keys of the block."""
        memory = self.memory
        gpu.barrier_wait(memory.written.at[slot])
        terms = [
            (memory.dscores.at[slot, part].transpose((1, 0)), memory.k.at[part])
            for part in range(COMPUTING)
        ]
        memory.dq[...] = gpu.sum_of_products(terms)
        gpu.commit_shared()
        gpu.add_out(memory.dq, self.dq.at[self.place()[0], rows, head])
