"""What tests add to the interpreter of Mosaic GPU: stores that add, which it does not know in jax 0.11.2, and a record of what kernels do.

Leans on names that are private in jax, where the interpreter calls back into Python.
"""

import contextlib
import functools
import math
import threading
from typing import NamedTuple
from unittest import mock

from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks, interpret_pallas_call

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
                present, *_ = memory.get_buffer_content(self.dst_allocation_key, access, self.thread)
                memory.store_buffer_content(self.dst_allocation_key, access, present + value, self.thread)
        self.post_write(tma_thread_id, memory)

    def post_read(self, tma_thread_id, shared_memory):
        if not self.adds or not shared_memory.detect_races:
            return super().post_read(tma_thread_id, shared_memory)
        self.clock.inc(tma_thread_id)
        self.write_clock = self.clock.copy()
        clock = self.clock.async_smem_clock.copy()
        gpu_callbacks.get_races().check_read(self.thread, clock, self.dst_allocation_key, self.dst_access, source_info=self.source_info)


def _store(*, reduction_op, store=gpu_callbacks.copy_smem_to_gmem, **arguments):
    if reduction_op not in (None, "add"):
        raise NotImplementedError(f"stores that add are known, and none of {reduction_op!r}")
    _asked.to_add = reduction_op == "add"
    try:
        return store(reduction_op=None, **arguments)
    finally:
        _asked.to_add = False


@contextlib.contextmanager
def additions():
    """Within it, the interpreter knows stores with reduction_op="add"."""
    with mock.patch.multiple(gpu_callbacks, copy_smem_to_gmem=_store, AsyncCopySmemToGmemTask=_MaybeAddition):
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
        key = gpu_callbacks.HostAllocationKey.from_array(arguments["src_allocation_key_as_array"])
        transforms = gpu_callbacks.jax.tree.map(int, gpu_callbacks._remove_noop_transforms(arguments["src_transforms"]))
        shape, place = memory.buffer_shape_and_dtype(key).shape, memory.access(key, transforms).range
        with lock:
            record.fetches.append(Fetch(_block(arguments), tuple(shape), tuple(place)))
        return fetch(**arguments)

    @functools.wraps(gpu_callbacks.wgmma)
    def product(*, product=gpu_callbacks.wgmma, **arguments):
        with lock:
            record.products[_block(arguments)] = record.products.get(_block(arguments), 0) + 1
        return product(**arguments)

    with mock.patch.multiple(gpu_callbacks, copy_gmem_to_smem=fetch, wgmma=product):
        yield record


def _block(arguments):
    return tuple(int(number) for number in arguments["mesh_location"].cluster_coords)
