"""What a file of tensors is to the rest of the house: names, shapes, dtypes, and a way to read any slice of one of them.

Bytes of a file at a place, into memory that the caller owns.

No memory mapping: pages of a map count as the process's own memory until the map is gone, and a file that gets shorter under a map kills
the process.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from mmjax.base.files import open_regular
from mmjax.errors import InputError

# Which part of a tensor: one slice for each of the leading axes, without steps; axes that are not named are read whole. It is what
# `jax.make_array_from_callback` hands to its callback.
type Index = tuple[slice, ...]

# The same with every axis and both ends spelt out: 0 <= start <= stop <= size.
type Ranges = tuple[tuple[int, int], ...]

# A longer name in a message would hide the message. The longest names of published models have about 100 characters.
_QUOTED = 160


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A tensor without its numbers.

    Attributes:
        shape: as `TensorSource.read` returns it; () for a single number.
        dtype: as `TensorSource.read` returns it, of numpy or ml_dtypes (bfloat16, float8_e4m3fn, ...).
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorSource(Protocol):
    """Open tensor files. What stands in them is checked while they are opened, so that reading fails only if a file changes meanwhile.

    Attributes:
        files: everything that tensors are read from, for messages.
        metadata: what the files say beside tensors: text by name in safetensors, the key/value fields of a GGUF file.
        tensors: all of them, by the names in the files.
    """

    files: tuple[Path, ...]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """A tensor, or the part of it that `index` names, in memory of its own. Beside that part, little memory is used.

        Raises KeyError for a name that is not in `tensors`, InputError if the file has become shorter or cannot be read.
        """

    def close(self) -> None:
        """Closes the files. Reading is not possible afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def spell_out(index: Index | None, shape: Sequence[int]) -> Ranges:
    """Start and stop on every axis of `shape`. An index with a step, or with more axes than there are, is a mistake of the caller."""
    index = index or ()
    assert len(index) <= len(shape), (index, shape)
    whole = (slice(None),) * (len(shape) - len(index))
    ends = [part.indices(size) for part, size in zip((*index, *whole), shape, strict=True)]
    assert all(step == 1 for _, _, step in ends), index
    return tuple((start, max(start, stop)) for start, stop, _ in ends)


def quoted(name: str) -> str:
    """A name from a file that may be damaged or hostile, safe to print."""
    shown = name[: _QUOTED + 1]
    text = ascii(shown) if not shown.isprintable() else repr(shown)
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}... ({len(name)} characters)"


# Pieces that lie no further apart are read together with what is between them: that costs less than a system call for each.
_GAP = 32 * 1024
_CHUNK = 1024 * 1024


class DiskFile:
    """A regular file, open for reading at any place, from any thread.

    Attributes:
        path: of the file.
        size: in bytes, when it was opened.
    """

    def __init__(self, path: Path):
        """Raises InputError if there is no such file, or if it cannot be opened."""
        self.path = path
        self._descriptor, self.size = open_regular(path)

    def read_into(self, buffer: np.ndarray, offset: int) -> None:
        """Fills a one-dimensional uint8 array with the bytes from `offset` on. Raises InputError if there are fewer."""
        view = memoryview(buffer)
        while len(view):
            try:
                # One call reads at most 2 GiB.
                count = os.preadv(self._descriptor, [view], offset)
            except OSError as error:
                raise InputError(f"{self.path} cannot be read: {error.strerror}.") from None
            if not count:
                raise InputError(
                    f"{self.path} ends at byte {offset}, within a tensor. Has it changed since it was opened?"
                )
            view, offset = view[count:], offset + count

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at a place. Raises InputError if there are fewer."""
        buffer = np.empty(length, np.uint8)
        self.read_into(buffer, offset)
        return buffer.tobytes()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def read_slice(
    file: DiskFile, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], ranges: Ranges
) -> np.ndarray:
    """TensorGroup of an array that lies in a file from `offset` on, last axis fastest. What is far from that part is not read.

    Returns an array of the shape that `ranges` has; beside it, 1 MiB of memory is used. Raises InputError if the file ends too early.
    """
    lengths = tuple(stop - start for start, stop in ranges)
    buffer = np.empty(math.prod(lengths) * dtype.itemsize, np.uint8)
    if buffer.size:
        strides = [math.prod(shape[axis + 1 :]) * dtype.itemsize for axis in range(len(shape))]
        # Behind the last axis that is not read whole, bytes follow each other: a run. Along the axis before it, runs are evenly spaced.
        split = next(
            (axis for axis in reversed(range(len(shape))) if lengths[axis] != shape[axis]), 0
        )
        outer, count, stride = (
            (lengths[: split - 1], lengths[split - 1], strides[split - 1])
            if split
            else ((), 1, buffer.size)
        )
        runs = buffer.reshape(-1, count, math.prod(lengths[split:]) * dtype.itemsize)
        first = offset + sum(start * step for (start, _), step in zip(ranges, strides, strict=True))
        for number, place in enumerate(itertools.product(*map(range, outer))):
            _read_runs(
                file,
                first + sum(at * step for at, step in zip(place, strides, strict=False)),
                stride,
                runs[number],
            )
    return buffer.view(dtype).reshape(lengths)


def _read_runs(file: DiskFile, offset: int, stride: int, runs: np.ndarray) -> None:
    """Fills each row of [count, bytes] from the file; the places of two rows are `stride` apart."""
    count, length = runs.shape
    if count == 1 or stride - length > _GAP or stride > _CHUNK:
        for number, run in enumerate(runs):
            file.read_into(run, offset + number * stride)
        return
    step = min(count, _CHUNK // stride)
    scratch = np.empty((step, stride), np.uint8)
    for begin in range(0, count, step):
        rows = min(step, count - begin)
        file.read_into(scratch.reshape(-1)[: (rows - 1) * stride + length], offset + begin * stride)
        runs[begin : begin + rows] = scratch[:rows, :length]
