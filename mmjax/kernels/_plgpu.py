"""The one place where Pallas Mosaic GPU is imported: its names move between releases of jax, and kernels see only these.

Written for jax 0.11.2. What is not a plain re-export hides a difference between a GPU and the interpreter that tests run kernels in.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

Accumulator = plgpu.WGMMAAccumulatorRef
Barrier = plgpu.Barrier
CompilerParams = plgpu.CompilerParams
Interpreter = plgpu.InterpretGPUParams
Layout = plgpu.Layout
SharedMemory = plgpu.SMEM

barrier_arrive = plgpu.barrier_arrive
barrier_wait = plgpu.barrier_wait
broadcasted_iota = plgpu.broadcasted_iota
commit_shared = plgpu.commit_smem
copy_in = plgpu.copy_gmem_to_smem
copy_out = plgpu.copy_smem_to_gmem
freeze = jax.freeze
kernel = plgpu.kernel
layout_cast = plgpu.layout_cast
load = plgpu.load
new_ref = jax.new_ref
read_accumulator = plgpu.wgmma_accumulator_load
set_max_registers = plgpu.set_max_registers
span = pl.ds
wait_copies_out = plgpu.wait_smem_to_gmem
when = pl.when
wgmma = plgpu.wgmma

Ref = Any
"""A reference to memory, as kernels get them; Pallas has no public class for it."""

Action = Callable[[], None]

VectorLayout = Any
"""ROWS or COLUMNS."""

ROWS = Layout.WGMMA.reduce(1)
COLUMNS = Layout.WGMMA.reduce(0)
"""One value per row, or per column, of a tile that wgmma produced, in the registers of the threads that hold that row or column."""


def matrix_memory(shape: tuple[int, ...], dtype: Any, widest: int = 128) -> Any:
    """Shared memory for matrices [..., M, N] that TMA fills and wgmma reads.

    The swizzle is the widest that divides a row of N values, and at most `widest` bytes. Both operands of a product need the same; and
    where M is summed over, it must be a multiple of as many values as a swizzle is wide.
    """
    width = swizzle(shape[-1], dtype, widest)
    tiling: Any = plgpu.TilingTransform  # to a type checker, both are abstract
    swizzling: Any = plgpu.SwizzleTransform
    return SharedMemory(
        shape,
        dtype,
        transforms=(tiling((8, width // jax.numpy.dtype(dtype).itemsize)), swizzling(width)),
    )


def swizzle(row: int, dtype: Any, widest: int = 128) -> int:
    """Bytes of the swizzle that `matrix_memory` takes for rows of so many values."""
    return next(
        width
        for width in (128, 64, 32)
        if width <= widest and row * jax.numpy.dtype(dtype).itemsize % width == 0
    )


def opaque(number: jax.Array) -> jax.Array:
    """The number, as one that the compiler cannot see through: what is computed from it is computed where it is needed, and not before a
    loop, where it would take registers all the time."""
    return jax.lax.optimization_barrier(number)


def add_out(source: Ref, target: Ref) -> None:
    """target += source, from shared to global memory by TMA, each number at a time of its own that nothing else can come between.

    In which order blocks add to the same number is not fixed, and neither, with it, are its last bits. The interpreter of jax 0.11.2 cannot
    do this; tests teach it.
    """
    copy_out(source, target, reduction_op="add")


def product(left: Ref, right: Ref, meanwhile: Action = lambda: None) -> jax.Array:
    """left @ right in float32, both in shared memory; `meanwhile` runs once the product has been issued."""

    def issue(total: Ref) -> jax.Array:
        wgmma(total, left, right)
        meanwhile()
        return total[...]

    return pl.run_scoped(issue, Accumulator((left.shape[0], right.shape[1]), jax.numpy.float32))


def sum_of_products(terms: list[tuple[Ref, Ref]]) -> jax.Array:
    """The sum of left @ right in float32, all in shared memory."""

    def issue(total: Ref) -> jax.Array:
        for left, right in terms:
            wgmma(total, left, right)
        return total[...]

    return pl.run_scoped(
        issue, Accumulator((terms[0][0].shape[0], terms[0][1].shape[1]), jax.numpy.float32)
    )


def two_products[T](
    first: tuple[Ref, Ref],
    second: tuple[Ref, Ref],
    meanwhile: Callable[[jax.Array], T],
    together: bool = True,
) -> tuple[T, jax.Array]:
    """Two products of matrices in shared memory; `meanwhile` has the first one while the second is still being computed.

    Not together: the second begins when `meanwhile` is done, and takes no registers before.
    """
    if not together:
        result = meanwhile(product(*first))
        return result, product(*second)
    types = [
        Accumulator((left.shape[0], right.shape[1]), jax.numpy.float32)
        for left, right in (first, second)
    ]

    def issue(one: Ref, other: Ref) -> tuple[T, jax.Array]:
        wgmma(one, *first)
        wgmma(other, *second)
        result = meanwhile(read_accumulator(one, wait_n=1))
        return result, other[...]

    return pl.run_scoped(issue, *types)


def add_product(
    total: jax.Array,
    left: jax.Array,
    right: Ref,
    spare: Ref | None = None,
    meanwhile: Action = lambda: None,
) -> jax.Array:
    """total + left @ right, with left in registers and right in shared memory."""
    return add_products([(total, left, right)], spare, meanwhile)[0]


def add_products(
    terms: list[tuple[jax.Array, jax.Array, Ref]],
    spare: Ref | None = None,
    meanwhile: Action = lambda: None,
) -> tuple[jax.Array, ...]:
    """total + left @ right for each of the terms, all on their way together.

    The interpreter of jax 0.11.2 knows neither a left operand in registers nor accumulators with a first value; with a `spare` piece of
    shared memory for `left`, the same is done in a way that it knows.
    """
    if spare is not None:
        sums = []
        for total, left, right in terms:
            spare[...] = left
            commit_shared()
            sums.append(total + product(spare, right))
        meanwhile()
        return tuple(sums)

    def issue(accumulators: list[Ref]) -> None:
        for accumulator, (_, left, right) in zip(accumulators, terms, strict=True):
            wgmma(accumulator, left, right)
        meanwhile()

    return tuple(pl.run_state(issue)([Accumulator.init(total) for total, _, _ in terms]))


def races_found() -> bool:
    """Whether the last kernel that ran in an interpreter with `detect_races` had a race. Not public in jax 0.11.2."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    return interpret_pallas_call.get_races().races_found
