"""The gradient of the queries: a block owns a tile of rows of one head and walks along the tiles of keys that its rows see.

The weights are made again from the scores and the log-sum-exp (FlashAttention-2, arXiv:2307.08691, section 3.1.2). Each block writes rows
of its own, in one order of additions: the same bits every time.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.kernels import _plgpu as gpu
from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.attention.mosaic_gpu import plan, scores
from mmjax.kernels.attention.mosaic_gpu.block import COMPUTING, BlockOfRows, Warpgroup, launch
from mmjax.kernels.attention.mosaic_gpu.ring import Ring
from mmjax.kernels.attention.mosaic_gpu.tuning import Tile
from mmjax.typing import Array, Float


class _Memory(NamedTuple):
    """Of a block; q also holds the result in the end."""

    q: gpu.Ref
    dout: gpu.Ref
    rows_arrived: gpu.Ref
    k: Ring
    v: Ring
    spare: gpu.Ref | None


def gradient_of_queries(
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
) -> Float[Array, "B T N H"]:
    """dq = scale dS k, where dS = P (dout v^T - delta), P are the weights and delta = rowsum(dout * out)."""
    batch, rows, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    owned = COMPUTING * tile.rows
    padded = plan.padded(rows, owned)
    visits = plan.visits_of_rows(mask, keys, owned, tile.keys)
    matrix = functools.partial(
        gpu.matrix_memory, dtype=q.dtype, widest=tile.keys * q.dtype.itemsize
    )
    ring = Ring.of(matrix((tile.stages, tile.keys, head_dim)), readers=COMPUTING)
    own = matrix((COMPUTING, tile.rows, head_dim))
    memory = _Memory(
        q=own,
        dout=own,
        rows_arrived=gpu.Barrier(num_arrivals=2, num_barriers=COMPUTING),
        k=ring,
        v=ring,
        spare=gpu.matrix_memory((COMPUTING, tile.rows, tile.keys), q.dtype)
        if interpreter
        else None,
    )

    block = functools.partial(
        _Block, scale=scale, softcap=softcap, group=heads // kv_heads, apart=tile.apart
    )
    out_type = jax.ShapeDtypeStruct(q.shape, q.dtype)
    kernel = launch(
        block,
        "attention_backward_queries",
        out_type,
        memory,
        (heads, padded // owned, batch),
        interpreter,
    )
    return kernel(
        q,
        k,
        v,
        dout,
        *plan.statistics(log_total, delta, padded),
        plan.bounds(mask, padded),
        visits.order,
        visits.counts,
    )


@dataclasses.dataclass(frozen=True)
class _Block(BlockOfRows):
    q: gpu.Ref
    k: gpu.Ref
    v: gpu.Ref
    dout: gpu.Ref
    log_total: gpu.Ref
    delta: gpu.Ref
    bounds: gpu.Ref
    order: gpu.Ref
    count: gpu.Ref
    dq: gpu.Ref
    memory: _Memory
    _: dataclasses.KW_ONLY
    scale: float
    softcap: float | None
    group: int
    apart: bool

    def compute(self, warpgroup: Warpgroup) -> None:
        batch, head, line = self.place()
        q, dout, arrived = (
            ref.at[warpgroup] for ref in (self.memory.q, self.memory.dout, self.memory.rows_arrived)
        )
        rows = gpu.span((line * COMPUTING + warpgroup) * q.shape[0], q.shape[0])
        gpu.copy_in(self.q.at[batch, rows, head], q, arrived)
        gpu.copy_in(self.dout.at[batch, rows, head], dout, arrived)
        intervals = scores.load_bounds(self.bounds.at[batch, :, :, rows], gpu.ROWS)
        log_total, delta = (
            scores.load_rows(ref.at[batch, head, rows], gpu.ROWS)
            for ref in (self.log_total, self.delta)
        )
        masked, visited = self.visits()
        gpu.barrier_wait(arrived)
        step = functools.partial(self.step, warpgroup, log_total, delta)
        total = gpu.layout_cast(jnp.zeros(q.shape, jnp.float32), gpu.Layout.WGMMA)
        total = jax.lax.fori_loop(0, masked, functools.partial(step, intervals), total)
        total = jax.lax.fori_loop(masked, visited, functools.partial(step, None), total)
        q[...] = (total * self.scale).astype(q.dtype)
        gpu.commit_shared()
        gpu.copy_out(q, self.dq.at[batch, rows, head])
        gpu.wait_copies_out(0)

    def step(
        self,
        warpgroup: Warpgroup,
        log_total: jax.Array,
        delta: jax.Array,
        intervals: list[scores.Interval] | None,
        visit: jax.Array,
        total: jax.Array,
    ) -> jax.Array:
        """One tile of keys; `intervals`: what the rows see of it, or None where they see all."""
        (k,), (v,) = self.memory.k.of_visit(visit), self.memory.v.of_visit(visit)
        first_key = jnp.int32(0) if intervals is None else self.first_key(visit)
        self.memory.k.wait(visit)
        self.memory.v.wait(visit)

        def slopes(raw: jax.Array) -> jax.Array:
            bounded = exponents = scores.bounded(raw, self.scale, self.softcap)
            if intervals is not None:
                exponents = scores.hidden(exponents, intervals, first_key, key_axis=1)
            factor = scores.factor(self.scale, self.softcap)
            weight = jnp.exp2(exponents * factor - scores.along(log_total, raw.shape, 0))
            return scores.sloped(weight, bounded, self.softcap)

        q_k = self.memory.q.at[warpgroup], k.transpose((1, 0))
        dout_v = self.memory.dout.at[warpgroup], v.transpose((1, 0))
        together = scores.roomy(k.shape[1], self.softcap, masked=intervals is not None)
        slope, dweight = gpu.two_products(q_k, dout_v, slopes, together=together)
        self.memory.v.release(visit)
        dscores = slope * (dweight - scores.along(delta, slope.shape, 0))
        spare = None if self.memory.spare is None else self.memory.spare.at[warpgroup]
        total = gpu.add_product(total, dscores.astype(self.k.dtype), k, spare)
        self.memory.k.release(visit)
        return total
