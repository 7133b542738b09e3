"""What the three kernels have in common: a block of one warpgroup that fetches and two that compute, placed by head, line and batch row."""

import abc
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.kernels import _plgpu as gpu

COMPUTING = 2
"""Warpgroups that compute; one more fetches."""

Warpgroup = int | jax.Array
"""The number of one that computes: known when the code is made, or only when it runs."""


class Block(abc.ABC):
    """One block, seen from one of its warpgroups. A line is the tile of rows or keys that it owns.

    Attributes:
        order: [B, lines, tiles] and count [B, lines, 2]: see `plan.Visits`.
        memory: what the block has in shared memory.
        group: query heads per key/value head.
        apart: each computing warpgroup has code of its own, in which the addresses of its shared memory are constants. Costs time to
            compile; without it, a kernel with two operands that stay keeps 64 registers of addresses for a head of 256.
    """

    order: gpu.Ref
    count: gpu.Ref
    memory: Any
    group: int
    apart: bool

    def run(self) -> None:
        warpgroup = jax.lax.axis_index("warpgroup")

        @gpu.when(warpgroup < COMPUTING)
        def _() -> None:
            gpu.set_max_registers(240, action="increase")
            if not self.apart:
                return self.compute(warpgroup)
            for one in range(COMPUTING):
                gpu.when(warpgroup == one)(functools.partial(self.compute, one))

        @gpu.when(warpgroup == COMPUTING)
        def _() -> None:
            gpu.set_max_registers(24, action="decrease")
            self.fetch()

    @abc.abstractmethod
    def compute(self, warpgroup: Warpgroup) -> None:
        """What a computing warpgroup does, from its first load to its last store."""

    @abc.abstractmethod
    def fetch(self) -> None:
        """What the fetching warpgroup does: fills the rings with the tiles that are visited."""

    def place(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Batch row, head and line."""
        return jax.lax.axis_index("batch"), jax.lax.axis_index("head"), jax.lax.axis_index("line")

    def visits(self) -> tuple[jax.Array, jax.Array]:
        """How many tiles need masking, and how many are visited in all."""
        batch, _, line = self.place()
        return self.count[batch, line, 0], self.count[batch, line, 1]


class BlockOfRows(Block):
    """Owns rows of one query head and walks along tiles of keys, which come in the rings memory.k and memory.v."""

    k: gpu.Ref
    v: gpu.Ref

    def place(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The last rows see most where masks are causal: the longest work begins first."""
        batch, head, line = super().place()
        return batch, head, self.order.shape[1] - 1 - line

    def fetch(self) -> None:
        batch, head, _ = self.place()
        head = jax.lax.div(head, jnp.int32(self.group))
        width = self.memory.k.memory[0].shape[1]

        def step(visit: jax.Array, _: None) -> None:
            keys = gpu.span(self.first_key(visit), width)
            self.memory.k.fetch(visit, self.k.at[batch, keys, head])
            self.memory.v.fetch(visit, self.v.at[batch, keys, head])

        visited = self.visits()[1]
        jax.lax.fori_loop(0, visited, step, None)
        self.memory.k.drain(visited)
        self.memory.v.drain(visited)

    def first_key(self, visit: jax.Array) -> jax.Array:
        batch, _, line = self.place()
        return self.order[batch, line, visit] * self.memory.k.memory[0].shape[1]


def launch(
    block: Callable[..., Block],
    name: str,
    out_type: Any,
    memory: Any,
    grid: tuple[int, int, int],
    interpreter: gpu.Interpreter | None,
) -> Callable[..., Any]:
    """The kernel whose blocks are block(*references, memory) over a grid of (heads, lines, batch rows)."""

    def body(*references: gpu.Ref) -> None:
        block(*references).run()

    body.__name__ = name
    # There is no reduction over more than one warp that would need scratch memory.
    parameters = gpu.CompilerParams(approx_math=True, reduction_scratch_bytes=0)
    return gpu.kernel(
        body,
        out_type=out_type,
        scratch_types=(memory,),
        grid=grid,
        grid_names=("head", "line", "batch"),
        num_threads=COMPUTING + 1,
        thread_name="warpgroup",
        compiler_params=parameters,
        interpret=interpreter,
    )
