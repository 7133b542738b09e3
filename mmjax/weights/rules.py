"""How a parameter of ours lies in other people's files: a permutation of the same numbers, undone on the way back.

The table between other people's tensors and our parameters, used in both directions.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Protocol

import jax

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
class Identity:
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
class LeadingOnes:
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


IDENTITY, TRANSPOSED = Identity(), Transposed()


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a table.

    Attributes:
        param_path: a parameter path. Where `checkpoint_name` has "{layer}" or "{expert}", the parameter has these axes in front, in this
        order.
        checkpoint_name: the name of a tensor, or of one for each layer and expert.
        part, parts: theirs holds `parts` arrays of equal size along its first axis, and ours is number `part` of them.
    """

    param_path: str
    checkpoint_name: str
    layout: Layout = IDENTITY
    part: int = 0
    parts: int = 1


@dataclasses.dataclass(frozen=True)
class TensorSlice:
    """One tensor of theirs, or a part of one, and where it belongs.

    Attributes:
        name: of the tensor; shape: of the whole tensor.
        target: our path; index: of the leading axes (layer, expert) that the piece fills.
        start: the first row of the tensor that belongs to it; count: how many do; () has no rows.
    """

    name: str
    shape: Shape
    target: str
    index: tuple[int, ...]
    layout: Layout
    start: int = 0
    count: int | None = None

    @property
    def own_shape(self) -> Shape:
        """The shape of the part of the tensor that belongs to it."""
        return self.shape if self.count is None else (self.count, *self.shape[1:])


def linear(
    param_path: str,
    checkpoint_name: str,
    *,
    bias: bool = False,
    layout: Layout = TRANSPOSED,
    part: int = 0,
    parts: int = 1,
) -> Iterator[Rule]:
    """The rules of a linear map: `checkpoint_name` + ".weight", and ".bias"."""
    yield Rule(f"{param_path}/kernel", f"{checkpoint_name}.weight", layout, part, parts)
    if bias:
        yield Rule(f"{param_path}/bias", f"{checkpoint_name}.bias", IDENTITY, part, parts)


def norm(param_path: str, checkpoint_name: str, *, bias: bool = False) -> Iterator[Rule]:
    """The rules of a norm."""
    yield Rule(f"{param_path}/scale", f"{checkpoint_name}.weight")
    if bias:
        yield Rule(f"{param_path}/bias", f"{checkpoint_name}.bias")


def prefixed(rules: Iterable[Rule], checkpoint_name: str) -> list[Rule]:
    """The same rules for tensors whose names begin with `checkpoint_name`."""
    return [
        dataclasses.replace(rule, checkpoint_name=checkpoint_name + rule.checkpoint_name)
        for rule in rules
    ]


def pieces(
    rules: Iterable[Rule],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    first: Mapping[str, int] = MappingProxyType({}),
) -> list[TensorSlice]:
    """What every rule means for parameters of these shapes, in the order of the rules. Every parameter has exactly one rule.

    Args:
        first: by path, the layer of theirs that is the first one of ours; 0 for the others.
    """
    rules = list(rules)
    ours = [rule.param_path for rule in rules]
    assert sorted(ours) == sorted(shapes), (
        sorted(set(ours) ^ set(shapes)) or "a parameter has two rules"
    )
    return [
        piece
        for rule in rules
        for piece in _expand(rule, shapes[rule.param_path].shape, first.get(rule.param_path, 0))
    ]


def count(rule: Rule, shape: Shape) -> int:
    """How many tensors a rule means for a parameter of this shape."""
    return math.prod(shape[: len(_leading(rule))])


def _leading(rule: Rule) -> list[str]:
    """What the axes in front of a parameter are, of which each has tensors of its own."""
    return [name for name in ("layer", "expert") if f"{{{name}}}" in rule.checkpoint_name]


def _expand(rule: Rule, shape: Shape, first: int) -> Iterator[TensorSlice]:
    leading = _leading(rule)
    sizes, own = shape[: len(leading)], shape[len(leading) :]
    theirs = rule.layout.theirs(own)
    count = theirs[0] if rule.parts > 1 else None
    whole = (theirs[0] * rule.parts, *theirs[1:]) if rule.parts > 1 else theirs
    for index in itertools.product(*map(range, sizes)):
        at = dict(zip(leading, index, strict=True))
        name = rule.checkpoint_name.format(**at | {"layer": at.get("layer", 0) + first})
        yield TensorSlice(
            name, whole, rule.param_path, index, rule.layout, rule.part * (count or 0), count
        )
