"""Tensors from files to arrays on devices, a bounded part of them in host memory at a time.

What a parameter is made from is read slice by slice (a layer, an expert, some rows of a long table), a little ahead of what is being put
in its place, and each part of the file once, however many devices hold it. Numbers that are not finite are refused.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Sharding

from mmjax.errors import InputError
from mmjax.typing import Array, Params
from mmjax.weights.pretrained_protocol import Progress
from mmjax.weights.rules import TensorSlice
from mmjax.weights.targets import Target, make_target, region_shape
from mmjax.weights.tensors import Ranges, TensorSource, quoted

WORKERS = 4
"""Threads that read; each holds one chunk."""
IN_FLIGHT = 64 * 1024 * 1024
"""Bytes that may wait on the host for the devices to take them."""
_CHUNK = 16 * 1024 * 1024  # numbers that are looked at in one go
# Bits of the exponent: all of them are set in what is not finite. numpy's isfinite is slow for numbers that processors do not have.
_EXPONENTS = {np.dtype(ml_dtypes.bfloat16): 0x7F80, np.dtype(np.float16): 0x7C00}


def is_finite(value: np.ndarray) -> bool:
    """Whether all numbers of an array are finite."""
    if value.ndim and value.size > _CHUNK and len(value) > 1:
        step = max(1, _CHUNK * len(value) // value.size)
        return all(is_finite(value[begin : begin + step]) for begin in range(0, len(value), step))
    mask = _EXPONENTS.get(value.dtype)
    return bool(
        np.isfinite(value).all()
        if mask is None
        else not (value.view(np.uint16) & mask == mask).any()
    )


def place(
    source: TensorSource,
    names: Mapping[str, str],
    slices: Iterable[TensorSlice],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    shardings: Mapping[str, Sharding],
    progress: Progress,
) -> Params:
    """The parameters that slices of one source make up. Raises InputError if a tensor holds a number that is not finite.

    Args:
        names: of the tensors in the source, by the names in the slices.
        shapes, shardings: of the parameters, by path.
        progress: told the bytes that were read.
    """
    params: Params = {}
    running: collections.deque[tuple[_Job, Future[tuple[Sequence[np.ndarray] | None, int]]]] = (
        collections.deque()
    )
    waiting: collections.deque[tuple[int, Array]] = collections.deque()

    def work(job: _Job) -> tuple[Sequence[np.ndarray] | None, int]:
        """In a thread: what was read, if it is still to be written, and how many bytes that were."""
        values, nbytes = _read(source, names, job)
        if not job.target.concurrent:
            return values, nbytes
        job.target.write(job.first, values)
        return None, nbytes

    def finish_oldest() -> None:
        job, future = running.popleft()
        values, nbytes = future.result()
        if values is not None and (done := job.target.write(job.first, values)) is not None:
            waiting.append((nbytes, done))
        while sum(size for size, _ in waiting) > IN_FLIGHT:
            waiting.popleft()[1].block_until_ready()
        progress(nbytes)
        if job.last:
            params[job.path] = job.target.array()

    with ThreadPoolExecutor(WORKERS, "weights") as pool:
        try:
            for job in _jobs(source, names, slices, shapes, shardings):
                running.append((job, pool.submit(work, job)))
                if len(running) > WORKERS:
                    finish_oldest()
            while running:
                finish_oldest()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return params


@dataclasses.dataclass(frozen=True)
class _Job:
    """What is read at once.

    Attributes:
        slices: one for each region of the target.
        rows: of the first axis of what a region needs of its tensor; None: all of them.
        first: where in a region the value begins.
        last: whether the parameter is complete afterwards.
    """

    path: str
    target: Target
    slices: Sequence[TensorSlice]
    rows: tuple[int, int] | None
    first: tuple[int, ...]
    last: bool


def _jobs(
    source: TensorSource,
    names: Mapping[str, str],
    slices: Iterable[TensorSlice],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    shardings: Mapping[str, Sharding],
) -> Iterator[_Job]:
    """Everything that has to be read, parameter by parameter; what is long is cut into rows."""
    by_path: dict[str, dict[tuple[int, ...], TensorSlice]] = {}
    for found in slices:
        by_path.setdefault(found.param_path, {})[found.index] = found
    for path, by_index in by_path.items():
        target = make_target(shapes[path], shardings[path])
        lead = len(next(iter(by_index)))
        inner = len(shapes[path].shape) - lead
        sizes = region_shape(target.regions[0])[:lead]
        for index in itertools.product(*map(range, sizes)):
            chosen = [
                by_index[tuple(start + at for (start, _), at in zip(region, index, strict=False))]
                for region in target.regions
            ]
            needed = {
                (found.name, found.needed(region))
                for found, region in zip(chosen, target.regions, strict=True)
            }
            shape = region_shape(next(iter(needed))[1])
            nbytes = sum(
                math.prod(shape) * source.tensors[names[name]].dtype.itemsize for name, _ in needed
            )
            axis = chosen[0].layout.axes(inner)[0] if shape else None
            chunks: list[tuple[int, int] | None] = [None]
            if nbytes > target.chunk and axis is not None:
                count = min(shape[0], -(-nbytes // target.chunk))
                ends = [shape[0] * number // count for number in range(count + 1)]
                chunks = list(itertools.pairwise(ends))
            for rows in chunks:
                first = [*index, *(0,) * inner]
                if rows is not None and axis is not None:
                    first[lead + axis] = rows[0]
                complete = rows == chunks[-1] and all(
                    at == size - 1 for at, size in zip(index, sizes, strict=True)
                )
                yield _Job(path, target, chosen, rows, tuple(first), complete)


def _read(
    source: TensorSource, names: Mapping[str, str], job: _Job
) -> tuple[list[np.ndarray], int]:
    """What goes into each region of the target, and how many bytes were read for it."""
    wanted = [
        (found, region, found.needed(region, job.rows))
        for found, region in zip(job.slices, job.target.regions, strict=True)
    ]
    parts: dict[str, list[Ranges]] = {}
    for found, _, part in wanted:
        parts.setdefault(found.name, []).append(part)
    read: dict[str, list[tuple[Ranges, np.ndarray]]] = {}
    for name, needed in parts.items():
        actual = names[name]
        for box in boxes(needed):
            value = source.read(actual, tuple(slice(*ends) for ends in box))
            value = value.astype(np.float32) if value.dtype == np.float64 else value
            if not is_finite(value):
                raise InputError(
                    f"{source.files[0]}: tensor {quoted(actual)} has numbers that are not finite (NaN or infinite)."
                )
            read.setdefault(name, []).append((box, value))
    values = []
    for found, region, part in wanted:
        places = ((within(part, box), value) for box, value in read[found.name])
        value = next(value[place] for place, value in places if place is not None)
        values.append(found.to_param(region, value))
    return values, sum(value.nbytes for found in read.values() for _, value in found)


def boxes(parts: Sequence[Ranges]) -> list[Ranges]:
    """The parts of one tensor that are read, so that together they hold all of `parts`, and nothing is read twice.

    Parts of the same rows that fill a box together are read as that box: a file is read fastest in the order in which it lies there.
    """
    groups: dict[object, set[Ranges]] = {}
    for part in parts:
        groups.setdefault(part[:1], set()).add(part)
    found: list[Ranges] = []
    for group in groups.values():
        box = tuple(
            (min(start for start, _ in axis), max(stop for _, stop in axis))
            for axis in zip(*group, strict=True)
        )
        filled = sum(math.prod(region_shape(part)) for part in group)
        found += [box] if math.prod(region_shape(box)) <= filled else sorted(group)
    return found


def within(part: Ranges, box: Ranges) -> tuple[slice, ...] | None:
    """Where a part lies in a box; None if it does not."""
    if any(
        start < first or stop > last for (start, stop), (first, last) in zip(part, box, strict=True)
    ):
        return None
    return tuple(
        slice(start - first, stop - first)
        for (start, stop), (first, _) in zip(part, box, strict=True)
    )
