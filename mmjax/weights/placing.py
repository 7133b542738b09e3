"""Whether numbers are finite: those that are not are neither read nor written.

Tensors from files to arrays on devices, a bounded part of them in host memory at a time.

What the file has is read piece by piece (a layer, an expert, some rows of a long table), a little ahead of what is being put in its place,
and each part of it once, however many devices hold it.
"""

import collections
import contextlib
import dataclasses
import itertools
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Sharding

from mmjax.errors import InputError
from mmjax.typing import Array, Params
from mmjax.weights.pretrained_protocol import Progress
from mmjax.weights.rules import TensorSlice
from mmjax.weights.targets import Target, boxed, in_file, lengths, make_target, turned, within
from mmjax.weights.tensors import Ranges, TensorSource, quoted

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


def cast_finite(value: np.ndarray, dtype: np.dtype[Any], name: str) -> np.ndarray:
    """An array in another dtype. Raises InputError if there are numbers in it, or in the result, that are not finite."""
    with np.errstate(over="ignore"):
        result = value.astype(dtype, copy=False)
    if is_finite(result):
        return result
    largest = float(np.abs(value.astype(np.float32, copy=False)).max(initial=0.0))
    if math.isfinite(largest):
        raise InputError(
            f"{name} cannot be written as {dtype.name}: its largest number, {largest:g}, would be infinite."
        )
    raise InputError(
        f"{name} has numbers that are not finite (NaN or infinite), and is not written."
    )


WORKERS = 4
"""Threads that read; each holds one chunk."""
IN_FLIGHT = 64 * 1024 * 1024
"""Bytes that may wait on the host for the devices to take them."""


@dataclasses.dataclass(frozen=True)
class _Job:
    """What is read at once.

    Attributes:
        pieces: one for each region of the target.
        index: of the layer and the expert, within a region.
        rows: of the first axis of what a region needs of its tensor; None: all of them.
        last: whether the parameter is complete afterwards.
    """

    path: str
    target: Target
    pieces: Sequence[TensorSlice]
    index: tuple[int, ...]
    rows: tuple[int, int] | None
    last: bool


class Placer:
    """Reads pieces of one source into parameters.

    Args:
        names: of the tensors in the source, by the names in the pieces.
        shapes, shardings: of the parameters, by path; without a sharding they lie on the first device.
        progress: told the bytes that were read.
    """

    def __init__(
        self,
        source: TensorSource,
        names: Mapping[str, str],
        shapes: Mapping[str, jax.ShapeDtypeStruct],
        shardings: Mapping[str, Sharding] | None = None,
        progress: Progress = lambda _: None,
    ):
        self._source, self._names, self._shapes, self._progress = source, names, shapes, progress
        self._shardings: Mapping[str, Sharding] = shardings or dict.fromkeys(
            shapes, jax.sharding.SingleDeviceSharding(jax.devices()[0])
        )

    def place(self, pieces: Sequence[TensorSlice]) -> Params:
        """The parameters that the pieces make up. Raises InputError if a tensor holds a number that is not finite."""
        params: Params = {}
        waiting: collections.deque[tuple[int, Array]] = collections.deque()
        with contextlib.closing(self._ahead(self._jobs(pieces))) as finished:
            for job, values, size in finished:
                if (
                    values is not None
                    and (done := job.target.write(self._first(job), values)) is not None
                ):
                    waiting.append((size, done))
                while sum(size for size, _ in waiting) > IN_FLIGHT:
                    waiting.popleft()[1].block_until_ready()
                self._progress(size)
                if job.last:
                    params[job.path] = job.target.array()
        return params

    def _ahead(
        self, jobs: Iterable[_Job]
    ) -> Generator[tuple[_Job, Sequence[np.ndarray] | None, int]]:
        """The jobs in order, with what was read for them, if it is still to be written, and how many bytes that were."""
        running: collections.deque[tuple[_Job, Future[tuple[Sequence[np.ndarray] | None, int]]]] = (
            collections.deque()
        )
        with ThreadPoolExecutor(WORKERS, "weights") as pool:
            try:
                for job in jobs:
                    running.append((job, pool.submit(self._work, job)))
                    if len(running) > WORKERS:
                        first, future = running.popleft()
                        yield first, *future.result()
                while running:
                    first, future = running.popleft()
                    yield first, *future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _work(self, job: _Job) -> tuple[Sequence[np.ndarray] | None, int]:
        values, size = self._read(job)
        if job.target.concurrent:
            job.target.write(self._first(job), values)
            return None, size
        return values, size

    def _jobs(self, pieces: Sequence[TensorSlice]) -> Iterator[_Job]:
        targets: dict[str, dict[tuple[int, ...], TensorSlice]] = {}
        for piece in pieces:
            targets.setdefault(piece.target, {})[piece.index] = piece
        for path, found in targets.items():
            target = make_target(self._shapes[path], self._shardings[path])
            lead = len(next(iter(found)))
            places = list(
                itertools.product(*(range(length) for length in lengths(target.regions[0][:lead])))
            )
            for index in places:
                chosen = [
                    found[tuple(start + at for (start, _), at in zip(region, index, strict=False))]
                    for region in target.regions
                ]
                chunks = self._chunks(target, chosen)
                for rows in chunks:
                    yield _Job(
                        path,
                        target,
                        chosen,
                        index,
                        rows,
                        last=index == places[-1] and rows == chunks[-1],
                    )

    def _chunks(
        self, target: Target, pieces: Sequence[TensorSlice]
    ) -> list[tuple[int, int] | None]:
        """Rows that are read at once."""
        parts = {
            (piece.name, in_file(piece, _own(piece, region)))
            for piece, region in zip(pieces, target.regions, strict=True)
        }
        shape = lengths(next(iter(parts))[1])
        nbytes = sum(
            math.prod(shape) * self._source.tensors[self._names[name]].dtype.itemsize
            for name, _ in parts
        )
        if nbytes <= target.chunk or pieces[0].layout.axes(len(shape))[0] is None:
            return [None]
        count = min(shape[0], -(-nbytes // target.chunk))
        ends = [shape[0] * number // count for number in range(count + 1)]
        return list(itertools.pairwise(ends))

    def _first(self, job: _Job) -> tuple[int, ...]:
        """Where in a region the value begins."""
        inner = [0] * (len(self._shapes[job.path].shape) - len(job.index))
        if job.rows:
            axis = job.pieces[0].layout.axes(len(inner))[0]
            assert axis is not None
            inner[axis] = job.rows[0]
        return (*job.index, *inner)

    def _read(self, job: _Job) -> tuple[list[np.ndarray], int]:
        """What goes into each region of the target, and how many bytes were read for it."""
        wanted: dict[str, list[Ranges]] = {}
        for piece, region in zip(job.pieces, job.target.regions, strict=True):
            wanted.setdefault(piece.name, []).append(_rows(piece, region, job.rows))
        read = {
            name: [(box, self._finite(name, box)) for box in boxed(parts)]
            for name, parts in wanted.items()
        }
        values = []
        for piece, region in zip(job.pieces, job.target.regions, strict=True):
            part = _rows(piece, region, job.rows)
            places = ((within(part, box), value) for box, value in read[piece.name])
            value = next(value[place] for place, value in places if place is not None)
            values.append(turned(piece, _own(piece, region), value))
        return values, sum(value.nbytes for boxes in read.values() for _, value in boxes)

    def _finite(self, name: str, part: Ranges) -> np.ndarray:
        """TensorGroup of a tensor. Raises InputError if a number in it is not finite."""
        value = self._source.read(self._names[name], tuple(slice(*ends) for ends in part))
        value = value.astype(np.float32) if value.dtype == np.float64 else value
        if not is_finite(value):
            raise InputError(
                f"{self._source.files[0]}: tensor {quoted(self._names[name])} has numbers that are not finite (NaN or infinite)."
            )
        return value


def _own(piece: TensorSlice, region: Ranges) -> Ranges:
    """A region of a parameter without the axes of layer and expert."""
    return region[len(piece.index) :]


def _rows(piece: TensorSlice, region: Ranges, rows: tuple[int, int] | None) -> Ranges:
    """What a region needs of the piece's tensor, or some rows of that."""
    part = in_file(piece, _own(piece, region))
    if not part:
        return part
    begin, end = part[0]
    first, last = (begin, end) if rows is None else (begin + rows[0], begin + rows[1])
    return ((piece.start + first, piece.start + last), *part[1:])
