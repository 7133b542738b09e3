"""Files of tensors: names, shapes and dtypes of what is in them, and a way to read any slice of one without the rest.

Nothing is mapped into memory: pages of a map count as the process's own memory until the map is gone, and a file that gets shorter under
a map kills the process.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import jax.numpy as jnp
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
# Runs of bytes that lie no further apart are read together with what is between them: that costs less than a system call for each.
_GAP = 32 * 1024
_CHUNK = 1024 * 1024
# Numbers of each of two tensors that are in memory while they are compared.
_COMPARED = 1024 * 1024


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
    """Open tensor files. Their contents are checked while they are opened, so that reading fails only if a file changes meanwhile.

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

    def stored_as(self, name: str) -> str:
        """How a tensor is stored: the name of a dtype, or of a way to quantise. Raises KeyError for an unknown name."""
        return self.tensors[name].dtype.name

    def close(self) -> None:
        """Closes the files. Reading is not possible afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


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
    """A part of an array that lies in a file from `offset` on, last axis fastest. What is far from that part is not read.

    Returns an array of the shape that `ranges` has; beside it, 1 MiB of memory is used. Raises InputError if the file ends too early.
    """
    lengths = tuple(stop - start for start, stop in ranges)
    buffer = np.empty(math.prod(lengths) * dtype.itemsize, np.uint8)
    if not buffer.size:
        return buffer.view(dtype).reshape(lengths)
    strides = [math.prod(shape[axis + 1 :]) * dtype.itemsize for axis in range(len(shape))]
    # Behind the last axis that is not read whole, bytes follow each other: a run. Along the axis before it, runs are evenly spaced.
    split = next((axis for axis in reversed(range(len(shape))) if lengths[axis] != shape[axis]), 0)
    outer, count, stride = (
        (lengths[: split - 1], lengths[split - 1], strides[split - 1])
        if split
        else ((), 1, buffer.size)
    )
    length = math.prod(lengths[split:]) * dtype.itemsize
    together = count > 1 and stride - length <= _GAP and stride <= _CHUNK
    step = min(count, _CHUNK // stride) if together else 1
    scratch = np.empty((step, stride), np.uint8) if together else None
    start = offset + sum(first * step for (first, _), step in zip(ranges, strides, strict=True))
    places = itertools.product(*map(range, outer))
    for place, runs in zip(places, buffer.reshape(-1, count, length), strict=True):
        first = start + sum(at * step for at, step in zip(place, strides, strict=False))
        for begin in range(0, count, step):
            if scratch is None:
                file.read_into(runs[begin], first + begin * stride)
                continue
            rows = min(step, count - begin)
            file.read_into(
                scratch.reshape(-1)[: (rows - 1) * stride + length], first + begin * stride
            )
            runs[begin : begin + rows] = scratch[:rows, :length]
    return buffer.view(dtype).reshape(lengths)


def spell_out(index: Index | None, shape: Sequence[int]) -> Ranges:
    """Start and stop on every axis of `shape`. An index with a step, or with more axes than there are, is a mistake of the caller."""
    index = index or ()
    assert len(index) <= len(shape), (index, shape)
    whole = (slice(None),) * (len(shape) - len(index))
    ends = [part.indices(size) for part, size in zip((*index, *whole), shape, strict=True)]
    assert all(step == 1 for _, _, step in ends), index
    return tuple((start, max(start, stop)) for start, stop, _ in ends)


def equal_matrices(source: TensorSource, first: str, second: str) -> bool:
    """Whether two tensors are matrices of floating-point numbers, and of the same ones; they are compared part by part."""
    left, right = source.tensors[first], source.tensors[second]
    if (
        left.shape != right.shape
        or len(left.shape) != 2
        or not all(jnp.issubdtype(info.dtype, jnp.floating) for info in (left, right))
    ):
        return False
    # Numbers of one dtype are compared by their bits.
    common = np.uint8 if left.dtype == right.dtype else np.float64
    rows, columns = left.shape
    width = min(columns, _COMPARED)
    height = max(1, _COMPARED // max(1, width))
    for row, column in itertools.product(range(0, rows, height), range(0, columns, max(1, width))):
        part = (slice(row, row + height), slice(column, column + width))
        a, b = (
            value.view(common) if common is np.uint8 else value.astype(common)
            for value in (source.read(first, part), source.read(second, part))
        )
        if not (a == b).all():
            return False
    return True


def quoted(name: str) -> str:
    """A name from a file that may be damaged or hostile, safe to print."""
    shown = name[: _QUOTED + 1]
    text = ascii(shown) if not shown.isprintable() else repr(shown)
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}... ({len(name)} characters)"


def damaged(path: Path, reason: str) -> InputError:
    """The error for a file that is not as its format says."""
    return InputError(f"{path} is damaged: {reason}.")
