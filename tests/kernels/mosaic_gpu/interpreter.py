"""What tests add to the interpreter of Mosaic GPU in jax 0.11.2: stores that add, products of matrices that the detector of races sees, and
a record of what kernels do.

Leans on names that are private in jax, where the interpreter calls back into Python.
"""

import contextlib
import functools
import math
import threading
from typing import NamedTuple
from unittest import mock

import jax
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks, interpret_pallas_call

from mmjax.kernels import _plgpu as gpu

_asked = threading.local()
_adding = threading.Lock()
_Store = gpu_callbacks.AsyncCopySmemToGmemTask


class _MaybeAddition(_Store):
    """A TMA store that adds if it was asked to.

    To the detector of races an addition is a read of global memory: two of them do not race with each other, as on a GPU, where each number
    is added by itself; with a plain store they do. Not shown: that the GPU adds as it should, in whatever order, and an addition that
    races with a plain load, which no kernel here does. The reading of shared memory is checked as for any store.
    """

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.adds = getattr(_asked, "to_add", False)

    def __call__(self, tma_thread_id):
        if not self.adds:
            return super().__call__(tma_thread_id)
        memory = gpu_callbacks._get_shared_memory()
        self.pre_read(tma_thread_id, memory)
        value, *_ = memory.get_buffer_content(self.src_allocation_key, self.src_access, self.thread)
        self.post_read(tma_thread_id, memory)
        shape = tuple(memory.buffer_shape_and_dtype(self.dst_allocation_key).shape)
        inside = gpu_callbacks._clip_store_to_shape(self.dst_access, value, shape)
        if inside is not None:
            access, value = inside
            with _adding:
                present, *_ = memory.get_buffer_content(
                    self.dst_allocation_key, access, self.thread
                )
                memory.store_buffer_content(
                    self.dst_allocation_key, access, present + value, self.thread
                )
        self.post_write(tma_thread_id, memory)

    def post_read(self, tma_thread_id, shared_memory):
        if not self.adds or not shared_memory.detect_races:
            return super().post_read(tma_thread_id, shared_memory)
        self.clock.inc(tma_thread_id)
        self.write_clock = self.clock.copy()
        clock = self.clock.async_smem_clock.copy()
        gpu_callbacks.get_races().check_read(
            self.thread,
            clock,
            self.dst_allocation_key,
            self.dst_access,
            source_info=self.source_info,
        )


def _store(*, reduction_op, store=gpu_callbacks.copy_smem_to_gmem, **arguments):
    assert reduction_op in (None, "add"), (
        f"stores that add are known, and none that do {reduction_op!r}"
    )
    _asked.to_add = reduction_op == "add"
    try:
        return store(reduction_op=None, **arguments)
    finally:
        _asked.to_add = False


@contextlib.contextmanager
def additions():
    """Within it, the interpreter knows stores with reduction_op="add"."""
    with mock.patch.multiple(
        gpu_callbacks, copy_smem_to_gmem=_store, AsyncCopySmemToGmemTask=_MaybeAddition
    ):
        yield


def _watched_product(*, product=gpu_callbacks.wgmma, **arguments):
    memory, thread = gpu_callbacks._get_shared_memory(), arguments["thread"]
    if memory.detect_races:
        # Like TMA, a product has a clock of its own, which its warpgroup knows once it has the result.
        clock = memory.get_clock(thread)
        clock.inc(memory.get_next_tma_thread_id())
        for operand in "ab":
            key, access = _accessed(memory, arguments, operand)
            races = gpu_callbacks.get_races()
            races.check_read(
                thread,
                clock.async_smem_clock.copy(),
                key,
                access,
                source_info=arguments["source_info"],
            )
        with memory.lock:
            memory.clocks[thread].update(clock)
    return product(**arguments)


WATCHING = gpu.Interpreter(detect_races=True, num_tma_threads_per_device=512)
"""With as many clocks as a block of a small test has copies and products: two that share one would seem to come one after the other."""


@contextlib.contextmanager
def watched_products():
    """Within it, the detector of races sees wgmma read its operands, which it does not by itself.

    It sees that when the product is issued, and not that the reading goes on until it is waited for.
    """
    with mock.patch.object(gpu_callbacks, "wgmma", _watched_product):
        yield


@contextlib.contextmanager
def last_blocks_first():
    """Within it, kernels run their blocks one after the other as ever, but in the opposite order."""

    def indices(grid, number, indices=interpret_pallas_call.interpret_utils.get_indices):
        return indices(grid, math.prod(grid) - 1 - number)

    with mock.patch.object(interpret_pallas_call.interpret_utils, "get_indices", indices):
        yield


class Fetch(NamedTuple):
    """A tile that TMA brought into shared memory.

    Attributes:
        block: coordinates of the block in the grid.
        shape: of the array in global memory.
        place: the indices that were read, an int or a slice for each axis.
    """

    block: tuple[int, ...]
    shape: tuple[int, ...]
    place: tuple


class Record(NamedTuple):
    """Attributes: fetches: in the order in which they happened; products: how many of matrices each block had (a dictionary)."""

    fetches: list[Fetch]
    products: dict


@contextlib.contextmanager
def recorded():
    """The record of all kernels that are traced and run within it."""
    record = Record([], {})
    lock = threading.Lock()

    @functools.wraps(gpu_callbacks.copy_gmem_to_smem)
    def fetch(*, fetch=gpu_callbacks.copy_gmem_to_smem, **arguments):
        memory = gpu_callbacks._get_shared_memory()
        key, access = _accessed(memory, arguments, "src")
        with lock:
            record.fetches.append(
                Fetch(
                    _block(arguments),
                    tuple(memory.buffer_shape_and_dtype(key).shape),
                    tuple(access.range),
                )
            )
        return fetch(**arguments)

    @functools.wraps(gpu_callbacks.wgmma)
    def product(*, product=gpu_callbacks.wgmma, **arguments):
        with lock:
            record.products[_block(arguments)] = record.products.get(_block(arguments), 0) + 1
        return product(**arguments)

    with mock.patch.multiple(gpu_callbacks, copy_gmem_to_smem=fetch, wgmma=product):
        yield record


def _accessed(memory, arguments, name):
    """Which memory a callback was given by a name, and which part of it."""
    key = gpu_callbacks.HostAllocationKey.from_array(arguments[f"{name}_allocation_key_as_array"])
    transforms = jax.tree.map(
        int, gpu_callbacks._remove_noop_transforms(arguments[f"{name}_transforms"])
    )
    return key, memory.access(key, transforms)


def _block(arguments):
    return tuple(int(number) for number in arguments["mesh_location"].cluster_coords)
