"""What a file of tensors is to the rest of the house: names, shapes, dtypes, and a way to read any slice of one of them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

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
