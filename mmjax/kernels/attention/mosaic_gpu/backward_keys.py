"""The gradients of keys and values: a block owns a tile of keys of one key/value head and walks along the tiles of rows that see them, of
every query head of the group in turn, so that the gradients leave once.

Tiles of scores are [keys, rows] here, S^T = K Q^T: then P^T and dS^T already lie as the next products want their left operand in registers
(dV = P^T dO, dK = dS^T Q). One order of additions: the same bits every time.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.kernels import _plgpu as gpu
from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.attention.mosaic_gpu import plan, scores
from mmjax.kernels.attention.mosaic_gpu.block import COMPUTING, Block, Warpgroup, launch
from mmjax.kernels.attention.mosaic_gpu.ring import Ring
from mmjax.kernels.attention.mosaic_gpu.tuning import Tile
from mmjax.typing import Array, Float


class _Memory(NamedTuple):
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


def gradient_of_keys(
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
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """dk = scale dS^T q and dv = P^T dout, summed over the query heads of a group; see `gradient_of_queries` for dS."""
    batch, rows, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    parts = 1 if tile.split else COMPUTING
    owned = parts * tile.keys
    padded = plan.padded(rows, tile.rows)
    visits = plan.visits_of_keys(mask, keys, tile.rows, owned)
    own = gpu.matrix_memory((parts, tile.keys, head_dim), k.dtype)
    seen = plan.bounds(mask, padded)
    matrix = gpu.matrix_memory((tile.stages, tile.rows, head_dim), q.dtype)
    numbers = gpu.SharedMemory((tile.stages, tile.rows), jnp.float32)
    intervals = gpu.SharedMemory((tile.stages, *seen.shape[1:3], tile.rows), jnp.int32)
    memory = _Memory(
        k=own,
        v=own,
        keys_arrived=gpu.Barrier(num_arrivals=2, num_barriers=COMPUTING),
        q=Ring.of(matrix, intervals, numbers, readers=COMPUTING),
        dout=Ring.of(matrix, numbers, readers=COMPUTING),
        finished=gpu.Barrier(num_arrivals=COMPUTING),
        spare=gpu.matrix_memory((COMPUTING, tile.keys, tile.rows), q.dtype) if interpreter else None,
    )

    block = functools.partial(_Block, scale=scale, softcap=softcap, group=heads // kv_heads, apart=tile.apart, split=tile.split)
    out_type = (jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype))
    kernel = launch(block, "attention_backward_keys", out_type, memory, (kv_heads, plan.padded(keys, owned) // owned, batch), interpreter)
    return kernel(q, k, v, dout, *plan.statistics(log_total, delta, padded), seen, visits.order, visits.counts)


@dataclasses.dataclass(frozen=True)
class _Block(Block):
    q: gpu.Ref
    k: gpu.Ref
    v: gpu.Ref
    dout: gpu.Ref
    log_total: gpu.Ref
    delta: gpu.Ref
    bounds: gpu.Ref
    order: gpu.Ref
    count: gpu.Ref
    dk: gpu.Ref
    dv: gpu.Ref
    memory: _Memory
    _: dataclasses.KW_ONLY
    scale: float
    softcap: float | None
    group: int
    apart: bool
    split: bool

    def fetch(self) -> None:
        batch, kv_head, line = self.place()
        memory = self.memory
        width = memory.q.memory[0].shape[1]
        visited = self.visits()[1]
        parts, keys_of_part = memory.k.shape[:2]
        for part in range(parts):
            keys = gpu.span((line * parts + part) * keys_of_part, keys_of_part)
            gpu.copy_in(self.k.at[batch, keys, kv_head], memory.k.at[part], memory.keys_arrived.at[part])
            gpu.copy_in(self.v.at[batch, keys, kv_head], memory.v.at[part], memory.keys_arrived.at[part])

        def step(number: jax.Array, _: None, member: jax.Array) -> None:
            head, visit = kv_head * self.group + member, member * visited + number
            rows = gpu.span(self.order[batch, line, number] * width, width)
            seen, log_total = self.bounds.at[batch, :, :, rows], self.log_total.at[batch, head, rows]
            memory.q.fetch(visit, self.q.at[batch, rows, head], seen, log_total)
            memory.dout.fetch(visit, self.dout.at[batch, rows, head], self.delta.at[batch, head, rows])

        def of_head(member: jax.Array, _: None) -> None:
            jax.lax.fori_loop(0, visited, functools.partial(step, member=member), None)

        jax.lax.fori_loop(0, self.group, of_head, None)
        memory.q.drain(self.group * visited)
        memory.dout.drain(self.group * visited)

    def compute(self, warpgroup: Warpgroup) -> None:
        if not self.split:
            return self.gradients(warpgroup, warpgroup, wanted=("dk", "dv"))
        for one, wanted in enumerate(("dk", "dv")):
            gpu.when(warpgroup == one)(functools.partial(self.gradients, warpgroup, 0, wanted=(wanted,)))

    def gradients(self, warpgroup: Warpgroup, part: Warpgroup, *, wanted: tuple[str, ...]) -> None:
        """One or both gradients of the block's part-th tile of keys."""
        batch, kv_head, line = self.place()
        memory = self.memory
        parts, width, head_dim = memory.k.shape
        first_key = (line * parts + part) * width
        masked, visited = self.visits()
        gpu.barrier_wait(memory.keys_arrived.at[part])

        def of_head(member: jax.Array, totals: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            step = functools.partial(self.step, warpgroup, part, wanted, member * visited)
            totals = jax.lax.fori_loop(0, masked, functools.partial(step, first_key), totals)
            return jax.lax.fori_loop(masked, visited, functools.partial(step, None), totals)

        zero = gpu.layout_cast(jnp.zeros((width, head_dim), jnp.float32), gpu.Layout.WGMMA)
        totals = dict(zip(wanted, jax.lax.fori_loop(0, self.group, of_head, (zero,) * len(wanted)), strict=True))
        if self.split:
            gpu.barrier_arrive(memory.finished)
            gpu.barrier_wait(memory.finished)
        keys = gpu.span(first_key, width)
        for name, staged, factor in (("dk", memory.k, self.scale), ("dv", memory.v, 1.0)):
            if name in wanted:
                staged.at[part][...] = (totals[name] * factor).astype(self.k.dtype)
        gpu.commit_shared()
        for name, staged, result in (("dk", memory.k, self.dk), ("dv", memory.v, self.dv)):
            if name in wanted:
                gpu.copy_out(staged.at[part], result.at[batch, keys, kv_head])
        gpu.wait_copies_out(0)

    def step(
        self,
        warpgroup: Warpgroup,
        part: Warpgroup,
        wanted: tuple[str, ...],
        before: jax.Array,
        first_key: jax.Array | None,
        number: jax.Array,
        totals: tuple[jax.Array, ...],
    ) -> tuple[jax.Array, ...]:
        """One tile of rows of one head; `before`: visits of earlier heads; `first_key` is None where every row sees every key."""
        memory = self.memory
        visit = before + number
        (q, seen, log_total), (dout, delta) = memory.q.of_visit(visit), memory.dout.of_visit(visit)
        weights = functools.partial(self.weights, first_key, seen, log_total)
        memory.q.wait(visit)
        memory.dout.wait(visit)
        k_q = memory.k.at[part], q.transpose((1, 0))
        spare = None if memory.spare is None else memory.spare.at[warpgroup]
        if wanted == ("dv",):
            rounded, _ = weights(gpu.product(*k_q))
            totals = gpu.add_products([(totals[0], rounded, dout)], spare)
        else:
            together = scores.roomy(q.shape[1], self.softcap, masked=first_key is not None)
            (rounded, slope), dweight = gpu.two_products(k_q, (memory.v.at[part], dout.transpose((1, 0))), weights, together=together)
            dscores = slope * (dweight - scores.along(scores.load_rows(delta, gpu.COLUMNS), slope.shape, 1))
            operands = {"dk": (dscores.astype(self.k.dtype), q), "dv": (rounded, dout)}
            totals = gpu.add_products([(total, *operands[name]) for name, total in zip(wanted, totals, strict=True)], spare)
        memory.q.release(visit)
        memory.dout.release(visit)
        return totals

    def weights(self, first_key: jax.Array | None, seen: gpu.Ref, log_total: gpu.Ref, raw: jax.Array) -> tuple[jax.Array, jax.Array]:
        """P^T of a tile from its raw scores, rounded; and in full, times the slope of the softcap."""
        bounded = exponents = scores.bounded(raw, self.scale, self.softcap)
        if first_key is not None:
            exponents = scores.hidden(exponents, scores.load_bounds(seen, gpu.COLUMNS), first_key, key_axis=0)
        log_total = scores.along(scores.load_rows(log_total, gpu.COLUMNS), raw.shape, 1)
        weight = jnp.exp2(exponents * scores.factor(self.scale, self.softcap) - log_total)
        return weight.astype(self.v.dtype), scores.sloped(weight, bounded, self.softcap)
