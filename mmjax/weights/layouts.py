"""How a parameter of ours lies in other people's files: a permutation of the same numbers, undone on the way back."""

import dataclasses
from typing import Protocol

from mmjax.typing import AnyArray

type Shape = tuple[int, ...]


class Layout(Protocol):
    """A bijection between an array of theirs and one of ours. Works on numpy and jax arrays alike."""

    def theirs(self, ours: Shape) -> Shape:
        """Their shape, from our shape."""
        ...

    def to_ours(self, array: AnyArray) -> AnyArray: ...

    def to_theirs(self, array: AnyArray) -> AnyArray: ...

    def axes(self, count: int) -> tuple[int | None, ...]:
        """For each axis of theirs, the axis of ours (of `count`) along which it can be cut into the same pieces; None: it cannot be."""
        ...


@dataclasses.dataclass(frozen=True)
class Same:
    """The same array: embedding tables, norms, biases."""

    def theirs(self, ours: Shape) -> Shape:
        return ours

    def to_ours(self, array: AnyArray) -> AnyArray:
        return array

    def to_theirs(self, array: AnyArray) -> AnyArray:
        return array

    def axes(self, count: int) -> tuple[int | None, ...]:
        return tuple(range(count))


@dataclasses.dataclass(frozen=True)
class Transposed:
    """The last two axes swapped: PyTorch's linear maps are (out, in), ours [in, out]."""

    def theirs(self, ours: Shape) -> Shape:
        return (*ours[:-2], ours[-1], ours[-2])

    def to_ours(self, array: AnyArray) -> AnyArray:
        return array.swapaxes(-1, -2)

    def to_theirs(self, array: AnyArray) -> AnyArray:
        return array.swapaxes(-1, -2)

    def axes(self, count: int) -> tuple[int | None, ...]:
        return (*range(count - 2), count - 1, count - 2)


@dataclasses.dataclass(frozen=True)
class Interleaved:
    """Transposed, and the two halves of each head's outputs interleaved: llama.cpp's queries and keys, which rotate neighbours."""

    heads: int

    def theirs(self, ours: Shape) -> Shape:
        return (ours[1], ours[0])

    def to_ours(self, array: AnyArray) -> AnyArray:
        outputs, inputs = array.shape
        return array.reshape(self.heads, -1, 2, inputs).swapaxes(1, 2).reshape(outputs, inputs).T

    def to_theirs(self, array: AnyArray) -> AnyArray:
        inputs, outputs = array.shape
        return array.T.reshape(self.heads, 2, -1, inputs).swapaxes(1, 2).reshape(outputs, inputs)

    def axes(self, count: int) -> tuple[int | None, ...]:
        return (None, 0)


@dataclasses.dataclass(frozen=True)
class InterleavedVector:
    """As `Interleaved`, for biases."""

    heads: int

    def theirs(self, ours: Shape) -> Shape:
        return ours

    def to_ours(self, array: AnyArray) -> AnyArray:
        return array.reshape(self.heads, -1, 2).swapaxes(1, 2).reshape(-1)

    def to_theirs(self, array: AnyArray) -> AnyArray:
        return array.reshape(self.heads, 2, -1).swapaxes(1, 2).reshape(-1)

    def axes(self, count: int) -> tuple[int | None, ...]:
        return (None,)


@dataclasses.dataclass(frozen=True)
class Patches:
    """A convolution (width, 3, p, p) whose stride is its size: [p * p * 3, width], rows ordered by row, column, channel."""

    size: int

    def theirs(self, ours: Shape) -> Shape:
        return (ours[1], 3, self.size, self.size)

    def to_ours(self, array: AnyArray) -> AnyArray:
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])

    def to_theirs(self, array: AnyArray) -> AnyArray:
        return array.reshape(self.size, self.size, 3, -1).transpose(3, 2, 0, 1)

    def axes(self, count: int) -> tuple[int | None, ...]:
        return (1, None, None, None)


@dataclasses.dataclass(frozen=True)
class Led:
    """With `ones` axes of size one in front: (1, 1, width) for [width]."""

    ones: int

    def theirs(self, ours: Shape) -> Shape:
        return (*(1,) * self.ones, *ours)

    def to_ours(self, array: AnyArray) -> AnyArray:
        return array.reshape(array.shape[self.ones :])

    def to_theirs(self, array: AnyArray) -> AnyArray:
        return array.reshape(*(1,) * self.ones, *array.shape)

    def axes(self, count: int) -> tuple[int | None, ...]:
        return (*(None,) * self.ones, *range(count))


SAME, TRANSPOSED = Same(), Transposed()
