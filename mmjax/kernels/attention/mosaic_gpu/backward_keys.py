"""The gradients of keys and values, deterministically: a `BlockOfKeys` with one order of additions, the same bits every time."""

import dataclasses
import functools

import jax

from mmjax.kernels import _plgpu as gpu
from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.attention.mosaic_gpu import block_of_keys
from mmjax.kernels.attention.mosaic_gpu.block import Warpgroup, launch
from mmjax.kernels.attention.mosaic_gpu.block_of_keys import BlockOfKeys, Memory, Totals, Visit
from mmjax.kernels.attention.mosaic_gpu.tuning import Tile
from mmjax.typing import Array, Float


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
    arrays, grid = block_of_keys.operands(q, k, v, dout, log_total, delta, mask, tile)
    memory = Memory.of(q, len(mask.intervals), tile, interpreted=interpreter is not None)
    group = q.shape[2] // k.shape[2]
    block = functools.partial(
        _Block, scale=scale, softcap=softcap, group=group, apart=tile.apart, split=tile.split
    )
    out_type = (jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype))
    return launch(block, "attention_backward_keys", out_type, memory, grid, interpreter)(*arrays)


@dataclasses.dataclass(frozen=True)
class _Block(BlockOfKeys):
    dk: gpu.Ref
    dv: gpu.Ref
    memory: Memory
    _: dataclasses.KW_ONLY
    split: bool

    def compute(self, warpgroup: Warpgroup) -> None:
        if not self.split:
            return self.gradients(warpgroup, warpgroup, wanted=("dk", "dv"))
        for one, wanted in enumerate(("dk", "dv")):
            gpu.when(warpgroup == one)(
                functools.partial(self.gradients, warpgroup, 0, wanted=(wanted,))
            )

    def gradients(self, warpgroup: Warpgroup, part: Warpgroup, *, wanted: tuple[str, ...]) -> None:
        """One or both gradients of the block's part-th tile of keys."""
        memory = self.memory
        totals = dict(
            zip(
                wanted,
                self.walk(part, len(wanted), functools.partial(self.step, warpgroup, part, wanted)),
                strict=True,
            )
        )
        if self.split:
            gpu.barrier_arrive(memory.finished)
            gpu.barrier_wait(memory.finished)
        places = {"dk": (memory.k, self.dk), "dv": (memory.v, self.dv)}
        factors = {"dk": self.scale, "dv": 1.0}
        self.store(part, [(totals[name] * factors[name], *places[name]) for name in wanted])

    def step(
        self,
        warpgroup: Warpgroup,
        part: Warpgroup,
        wanted: tuple[str, ...],
        visit: Visit,
        first_key: jax.Array | None,
        totals: Totals,
    ) -> Totals:
        memory = self.memory
        (q, seen, log_total), (dout, _) = (
            memory.q.of_visit(visit.of_all),
            memory.dout.of_visit(visit.of_all),
        )
        memory.q.wait(visit.of_all)
        memory.dout.wait(visit.of_all)
        spare = None if memory.spare is None else memory.spare.at[warpgroup]
        if wanted == ("dv",):
            rounded, _ = self.weights(
                first_key, seen, log_total, gpu.product(memory.k.at[part], q.transpose((1, 0)))
            )
            operands = {"dv": (rounded, dout)}
        else:
            rounded, dscores = self.weights_and_slopes(part, visit, first_key)
            operands = {"dk": (dscores, q), "dv": (rounded, dout)}
        totals = gpu.add_products(
            [(total, *operands[name]) for name, total in zip(wanted, totals, strict=True)], spare
        )
        memory.q.release(visit.of_all)
        memory.dout.release(visit.of_all)
        return totals
