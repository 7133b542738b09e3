"""A ring of shared memory: one warpgroup fills its stages with TMA, others read them and say when they are done."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.kernels import _plgpu as gpu


class Ring(NamedTuple):
    """Visit n uses stage n mod stages. As scratch of a kernel it holds types, inside the kernel references.

    Attributes:
        memory: arrays [stages, ...], which arrive together.
        arrived: a barrier per stage: TMA has filled it.
        free: a barrier per stage: every reader is done with it.
    """

    memory: tuple[Any, ...]
    arrived: Any
    free: Any

    @classmethod
    def of(cls, *memory: Any, readers: int) -> "Ring":
        """For arrays [stages, ...] that `readers` warpgroups read."""
        stages = memory[0].shape[0]
        arrived = gpu.Barrier(num_arrivals=len(memory), num_barriers=stages)
        return cls(memory, arrived, gpu.Barrier(num_arrivals=readers, num_barriers=stages))

    def fetch(self, visit: jax.Array, *sources: gpu.Ref) -> None:
        """Fills the stage of a visit, once the readers of the visit that had it before are done."""
        slot = self._slot(visit)
        gpu.when(visit >= self.memory[0].shape[0])(
            functools.partial(gpu.barrier_wait, self.free.at[slot])
        )
        for source, target in zip(sources, self.memory, strict=True):
            gpu.copy_in(source, target.at[slot], self.arrived.at[slot])

    def drain(self, visited: jax.Array) -> None:
        """Waits for the readers of the last visits, after all have been fetched: no barrier ends in a phase that nobody saw."""
        first = jnp.maximum(visited - self.memory[0].shape[0], 0)
        jax.lax.fori_loop(
            first, visited, lambda visit, _: gpu.barrier_wait(self.free.at[self._slot(visit)]), None
        )

    def wait(self, visit: jax.Array) -> None:
        gpu.barrier_wait(self.arrived.at[self._slot(visit)])

    def of_visit(self, visit: jax.Array) -> tuple[gpu.Ref, ...]:
        return tuple(array.at[self._slot(visit)] for array in self.memory)

    def release(self, visit: jax.Array) -> None:
        gpu.barrier_arrive(self.free.at[self._slot(visit)])

    def _slot(self, visit: jax.Array) -> jax.Array:
        return gpu.opaque(jax.lax.rem(visit, jnp.int32(self.memory[0].shape[0])))
