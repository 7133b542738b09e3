"""The forward kernel: a block owns a tile of rows of one head and walks along the tiles of keys that its rows see.

One warpgroup fetches keys and values into a ring of shared memory; two compute, each with rows of its own, and take turns, so that one
multiplies while the other exponentiates (FlashAttention-3, arXiv:2407.08608, section 3.1). The softmax is a running one
(FlashAttention-2, arXiv:2307.08691, algorithm 1).
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
    """Of a block. q holds the rows of both warpgroups, and their results in the end; turn: who may use the tensor cores."""

    q: gpu.Ref
    q_arrived: gpu.Ref
    k: Ring
    v: Ring
    log_total: gpu.Ref
    turn: gpu.Ref
    spare: gpu.Ref | None


def forward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask,
    scale: float,
    softcap: float | None,
    tile: Tile,
    interpreter: gpu.Interpreter | None = None,
    *,
    remainder: bool = False,
) -> tuple[Array, ...]:
    """The result [B, T, N, H]; for each row the logarithm [B, N, T] to base two of the sum of its exponentials, infinity where it sees
    nothing; and if wanted the remainder: what was rounded off the result, like it."""
    batch, rows, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    owned = COMPUTING * tile.rows
    padded = plan.padded(rows, owned)
    visits = plan.visits_of_rows(mask, keys, owned, tile.keys)
    ring = Ring.of(
        gpu.matrix_memory((tile.stages, tile.keys, head_dim), k.dtype), readers=COMPUTING
    )
    memory = _Memory(
        q=gpu.matrix_memory((COMPUTING, tile.rows, head_dim), q.dtype),
        q_arrived=gpu.Barrier(num_barriers=COMPUTING),
        k=ring,
        v=ring,
        log_total=gpu.SharedMemory((COMPUTING, tile.rows), jnp.float32),
        turn=gpu.Barrier(num_arrivals=COMPUTING),
        spare=gpu.matrix_memory((COMPUTING, tile.rows, tile.keys), q.dtype)
        if interpreter
        else None,
    )

    def block(*references: gpu.Ref) -> _Block:
        if not remainder:
            references = (*references[:-1], None, references[-1])
        return functools.partial(_Block, *references)(
            scale=scale, softcap=softcap, group=heads // kv_heads, apart=tile.apart
        )

    like_q = jax.ShapeDtypeStruct(q.shape, q.dtype)
    out_type = (
        like_q,
        jax.ShapeDtypeStruct((batch, heads, padded), jnp.float32),
        *(like_q,) * remainder,
    )
    kernel = launch(
        block, "attention_forward", out_type, memory, (heads, padded // owned, batch), interpreter
    )
    out, log_total, *rest = kernel(q, k, v, plan.bounds(mask, padded), visits.order, visits.counts)
    return out, log_total[:, :, :rows], *rest


@dataclasses.dataclass(frozen=True)
class _Block(BlockOfRows):
    q: gpu.Ref
    k: gpu.Ref
    v: gpu.Ref
    bounds: gpu.Ref
    order: gpu.Ref
    count: gpu.Ref
    out: gpu.Ref
    log_total: gpu.Ref
    remainder: gpu.Ref | None
    memory: _Memory
    _: dataclasses.KW_ONLY
    scale: float
    softcap: float | None
    group: int
    apart: bool

    def compute(self, warpgroup: Warpgroup) -> None:
        batch, head, line = self.place()
        q, q_arrived = self.memory.q.at[warpgroup], self.memory.q_arrived.at[warpgroup]
        rows = gpu.span((line * COMPUTING + warpgroup) * q.shape[0], q.shape[0])
        gpu.copy_in(self.q.at[batch, rows, head], q, q_arrived)
        intervals = scores.load_bounds(self.bounds.at[batch, :, :, rows], gpu.ROWS)
        masked, visited = self.visits()
        gpu.barrier_wait(q_arrived)
        gpu.when(visited > 0)(functools.partial(self.memory.k.wait, jnp.int32(0)))
        gpu.when(warpgroup == 1)(self.turn)
        step = functools.partial(self.step, warpgroup, visited)
        state = _nothing_seen(*q.shape)
        state = jax.lax.fori_loop(0, masked, functools.partial(step, intervals), state)
        total, highest, weight = jax.lax.fori_loop(
            masked, visited, functools.partial(step, None), state
        )
        gpu.when(warpgroup == 0)(self.turn)

        something = weight > 0
        result = total * scores.along(jnp.where(something, 1 / weight, 0.0), total.shape, 0)
        rounded = result.astype(q.dtype)
        q[...] = rounded
        self.memory.log_total.at[warpgroup][...] = jnp.where(
            something, highest + jnp.log2(weight), jnp.inf
        )
        gpu.commit_shared()
        gpu.copy_out(q, self.out.at[batch, rows, head])
        gpu.copy_out(self.memory.log_total.at[warpgroup], self.log_total.at[batch, head, rows])
        gpu.wait_copies_out(0)
        if self.remainder is not None:
            q[...] = (result - rounded.astype(jnp.float32)).astype(q.dtype)
            gpu.commit_shared()
            gpu.copy_out(q, self.remainder.at[batch, rows, head])
            gpu.wait_copies_out(0)

    def turn(self) -> None:
        gpu.barrier_arrive(self.memory.turn)
        gpu.barrier_wait(self.memory.turn)

    def step(
        self,
        warpgroup: Warpgroup,
        visited: jax.Array,
        intervals: list[scores.Interval] | None,
        visit: jax.Array,
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One tile of keys, whose arrival has been awaited; `intervals`: what the rows see, or None where they see all of the tile."""
        (k,), (v,) = self.memory.k.of_visit(visit), self.memory.v.of_visit(visit)
        total, highest, weight = state
        first_key = jnp.int32(0) if intervals is None else self.first_key(visit)
        raw = gpu.product(self.memory.q.at[warpgroup], k.transpose((1, 0)), meanwhile=self.turn)
        self.memory.k.release(visit)
        exponents = scores.bounded(raw, self.scale, self.softcap)
        if intervals is not None:
            exponents = scores.hidden(exponents, intervals, first_key, key_axis=1)
        factor = scores.factor(self.scale, self.softcap)
        higher = jnp.maximum(highest, exponents.max(axis=1) * factor)
        less = jnp.exp2(highest - higher)
        weights = jnp.exp2(exponents * factor - scores.along(higher, raw.shape, 0))
        total *= scores.along(less, total.shape, 0)
        weight = weight * less + weights.sum(axis=1)
        rounded = weights.astype(self.v.dtype)
        total, higher, weight, rounded = jax.lax.optimization_barrier(
            (total, higher, weight, rounded)
        )
        gpu.barrier_arrive(self.memory.turn)  # the other warpgroup may multiply
        self.memory.v.wait(visit)
        gpu.barrier_wait(self.memory.turn)

        def await_next() -> None:
            gpu.when(visit + 1 < visited)(functools.partial(self.memory.k.wait, visit + 1))

        spare = None if self.memory.spare is None else self.memory.spare.at[warpgroup]
        total = gpu.add_product(total, rounded, v, spare, meanwhile=await_next)
        self.memory.v.release(visit)
        return total, higher, weight


def _nothing_seen(rows: int, head_dim: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weighted sum of values, highest exponent and sum of weights of each row, before any key."""
    return (
        gpu.layout_cast(jnp.zeros((rows, head_dim), jnp.float32), gpu.Layout.WGMMA),
        gpu.layout_cast(jnp.full((rows,), scores.LOWEST, jnp.float32), gpu.ROWS),
        gpu.layout_cast(jnp.zeros((rows,), jnp.float32), gpu.ROWS),
    )
