"""The table between the tensors of checkpoints and the parameters of mmjax, which is used in both directions.

A rule says which tensors a parameter is made from, and its layout how the same numbers lie in them.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Protocol

import jax
import numpy as np

from mmjax.typing import AnyArray
from mmjax.weights.tensors import Ranges

type Shape = tuple[int, ...]


class Layout(Protocol):
    """A bijection between an array of a checkpoint and one of a parameter. Works on numpy and jax arrays alike."""

    def checkpoint_shape(self, shape: Shape) -> Shape:
        """The shape in the checkpoint, from that in the parameter."""
        ...

    def from_checkpoint(self, array: AnyArray) -> AnyArray: ...

    def to_checkpoint(self, array: AnyArray) -> AnyArray: ...

    def axes(self, count: int) -> tuple[int | None, ...]:
        """For each axis in the checkpoint, the axis of the parameter (of `count`) along which it can be cut into the same pieces; None:
        it cannot be."""
        ...


@dataclasses.dataclass(frozen=True)
class Identity:
    """The same array: embedding tables, norms, biases."""

    def checkpoint_shape(self, shape: Shape) -> Shape:
        return shape

    def from_checkpoint(self, array: AnyArray) -> AnyArray:
        return array

    def to_checkpoint(self, array: AnyArray) -> AnyArray:
        return array

    def axes(self, count: int) -> tuple[int | None, ...]:
        return tuple(range(count))


@dataclasses.dataclass(frozen=True)
class Transposed:
    """The last two axes swapped: PyTorch's linear maps are (out, in), those of mmjax [in, out]."""

    def checkpoint_shape(self, shape: Shape) -> Shape:
        return (*shape[:-2], shape[-1], shape[-2])

    def from_checkpoint(self, array: AnyArray) -> AnyArray:
        return array.swapaxes(-1, -2)

    def to_checkpoint(self, array: AnyArray) -> AnyArray:
        return array.swapaxes(-1, -2)

    def axes(self, count: int) -> tuple[int | None, ...]:
        return (*range(count - 2), count - 1, count - 2)


@dataclasses.dataclass(frozen=True)
class Interleaved:
    """Transposed, and the two halves of each head's outputs interleaved: llama.cpp's queries and keys, which rotate neighbours."""

    heads: int

    def checkpoint_shape(self, shape: Shape) -> Shape:
        return (shape[1], shape[0])

    def from_checkpoint(self, array: AnyArray) -> AnyArray:
        outputs, inputs = array.shape
        return array.reshape(self.heads, -1, 2, inputs).swapaxes(1, 2).reshape(outputs, inputs).T

    def to_checkpoint(self, array: AnyArray) -> AnyArray:
        inputs, outputs = array.shape
        return array.T.reshape(self.heads, 2, -1, inputs).swapaxes(1, 2).reshape(outputs, inputs)

    def axes(self, count: int) -> tuple[int | None, ...]:
        return (None, 0)


@dataclasses.dataclass(frozen=True)
class InterleavedVector:
    """As `Interleaved`, for biases."""

    heads: int

    def checkpoint_shape(self, shape: Shape) -> Shape:
        return shape

    def from_checkpoint(self, array: AnyArray) -> AnyArray:
        return array.reshape(self.heads, -1, 2).swapaxes(1, 2).reshape(-1)

    def to_checkpoint(self, array: AnyArray) -> AnyArray:
        return array.reshape(self.heads, 2, -1).swapaxes(1, 2).reshape(-1)

    def axes(self, count: int) -> tuple[int | None, ...]:
        return (None,)


@dataclasses.dataclass(frozen=True)
class Patches:
    """A convolution (width, 3, p, p) whose stride is its size: [p * p * 3, width], rows ordered by row, column, channel."""

    size: int

    def checkpoint_shape(self, shape: Shape) -> Shape:
        return (shape[1], 3, self.size, self.size)

    def from_checkpoint(self, array: AnyArray) -> AnyArray:
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])

    def to_checkpoint(self, array: AnyArray) -> AnyArray:
        return array.reshape(self.size, self.size, 3, -1).transpose(3, 2, 0, 1)

    def axes(self, count: int) -> tuple[int | None, ...]:
        return (1, None, None, None)


@dataclasses.dataclass(frozen=True)
class LeadingOnes:
    """With `ones` axes of size one in front: (1, 1, width) for [width]."""

    ones: int

    def checkpoint_shape(self, shape: Shape) -> Shape:
        return (*(1,) * self.ones, *shape)

    def from_checkpoint(self, array: AnyArray) -> AnyArray:
        return array.reshape(array.shape[self.ones :])

    def to_checkpoint(self, array: AnyArray) -> AnyArray:
        return array.reshape(*(1,) * self.ones, *array.shape)

    def axes(self, count: int) -> tuple[int | None, ...]:
        return (*(None,) * self.ones, *range(count))


IDENTITY, TRANSPOSED = Identity(), Transposed()


@dataclasses.dataclass(frozen=True)
class TensorSlice:
    """One tensor of a checkpoint, or some rows of one, and where it belongs.

    Attributes:
        name: of the tensor; shape: of the whole tensor.
        param_path: of the parameter; index: of its leading axes (layer, expert) that the slice fills.
        start: the first row of the tensor that belongs to it; count: how many rows do; None: all.
    """

    name: str
    shape: Shape
    param_path: str
    index: tuple[int, ...]
    layout: Layout
    start: int = 0
    count: int | None = None

    def needed(self, region: Ranges, rows: tuple[int, int] | None = None) -> Ranges:
        """What of the tensor has to be read for a region of the parameter: along axes that the layout mixes with others, all of it.

        Args:
            rows: of the first axis of that, some only.
        """
        own = region[len(self.index) :]
        sizes = self.shape if self.count is None else (self.count, *self.shape[1:])
        part = tuple(
            (0, size) if axis is None else own[axis]
            for size, axis in zip(sizes, self.layout.axes(len(own)), strict=True)
        )
        if not part:
            return part
        first, last = part[0]
        if rows is not None:
            first, last = first + rows[0], first + rows[1]
        return ((self.start + first, self.start + last), *part[1:])

    def to_param(self, region: Ranges, value: np.ndarray) -> np.ndarray:
        """What was read for `needed(region)`, or some rows of it, as that region of the parameter; a view where that is possible."""
        own = region[len(self.index) :]
        axes = self.layout.axes(len(own))
        cut = tuple(slice(None) if axis in axes else slice(*own[axis]) for axis in range(len(own)))
        return np.asarray(self.layout.from_checkpoint(value))[cut]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a table.

    Attributes:
        param_path: a parameter path. Where `checkpoint_name` has "{layer}" or "{expert}", the parameter has these axes in front, in this
            order.
        checkpoint_name: the name of a tensor, or of one for each layer and expert.
        part, parts: the tensor holds `parts` arrays of equal size along its first axis, and the parameter is number `part` of them.
    """

    param_path: str
    checkpoint_name: str
    layout: Layout = IDENTITY
    part: int = 0
    parts: int = 1

    @property
    def leading(self) -> tuple[str, ...]:
        """What the axes in front of the parameter are, along which each entry has tensors of its own."""
        return tuple(name for name in ("layer", "expert") if f"{{{name}}}" in self.checkpoint_name)

    def count(self, shape: Shape) -> int:
        """How many tensors the rule means for a parameter of this shape."""
        return math.prod(shape[: len(self.leading)])

    def slices(self, shape: Shape, first_layer: int = 0) -> list[TensorSlice]:
        """What the rule means for a parameter of this shape, whose first layer is number `first_layer` of the checkpoint."""
        leading = self.leading
        sizes, own = shape[: len(leading)], self.layout.checkpoint_shape(shape[len(leading) :])
        rows = own[0] if self.parts > 1 else None
        whole = (own[0] * self.parts, *own[1:]) if self.parts > 1 else own
        found = []
        for index in itertools.product(*map(range, sizes)):
            at = dict(zip(leading, index, strict=True))
            name = self.checkpoint_name.format(**at | {"layer": at.get("layer", 0) + first_layer})
            start = self.part * (rows or 0)
            found.append(TensorSlice(name, whole, self.param_path, index, self.layout, start, rows))
        return found


def linear(
    param_path: str,
    checkpoint_name: str,
    *,
    bias: bool = False,
    layout: Layout = TRANSPOSED,
    part: int = 0,
    parts: int = 1,
) -> list[Rule]:
    """The rules of a linear map: `checkpoint_name` + ".weight", and ".bias"."""
    kernel = Rule(f"{param_path}/kernel", f"{checkpoint_name}.weight", layout, part, parts)
    added = Rule(f"{param_path}/bias", f"{checkpoint_name}.bias", IDENTITY, part, parts)
    return [kernel, added] if bias else [kernel]


def norm(param_path: str, checkpoint_name: str, *, bias: bool = False) -> list[Rule]:
    """The rules of a norm: `checkpoint_name` + ".weight", and ".bias"."""
    scale = Rule(f"{param_path}/scale", f"{checkpoint_name}.weight")
    return [scale, Rule(f"{param_path}/bias", f"{checkpoint_name}.bias")] if bias else [scale]


def tensor_slices(
    rules: Iterable[Rule],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    first_layers: Mapping[str, int] = MappingProxyType({}),
) -> list[TensorSlice]:
    """What every rule means for parameters of these shapes, in the order of the rules. Every parameter has exactly one rule.

    Args:
        first_layers: by path, the layer of the checkpoint that is the first one of the parameter; 0 for the others.
    """
    rules = list(rules)
    paths = [rule.param_path for rule in rules]
    assert sorted(paths) == sorted(shapes), (
        sorted(set(paths) ^ set(shapes)) or "a parameter has two rules"
    )
    return [
        found
        for rule in rules
        for found in rule.slices(
            shapes[rule.param_path].shape, first_layers.get(rule.param_path, 0)
        )
    ]
