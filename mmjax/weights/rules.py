"""The table between other people's tensors and our parameters, used in both directions."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

import jax

from mmjax.weights.layouts import SAME, TRANSPOSED, Layout, Shape


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a table.

    Attributes:
        ours: a parameter path. Where `theirs` has "{layer}" or "{expert}", the parameter has these axes in front, in this order.
        theirs: the name of a tensor, or of one for each layer and expert.
        part, parts: theirs holds `parts` arrays of equal size along its first axis, and ours is number `part` of them.
    """

    ours: str
    theirs: str
    layout: Layout = SAME
    part: int = 0
    parts: int = 1


@dataclasses.dataclass(frozen=True)
class Piece:
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


def linear(ours: str, theirs: str, *, bias: bool = False, layout: Layout = TRANSPOSED, part: int = 0, parts: int = 1) -> Iterator[Rule]:
    """The rules of a linear map: `theirs` + ".weight", and ".bias"."""
    yield Rule(f"{ours}/kernel", f"{theirs}.weight", layout, part, parts)
    if bias:
        yield Rule(f"{ours}/bias", f"{theirs}.bias", SAME, part, parts)


def norm(ours: str, theirs: str, *, bias: bool = False) -> Iterator[Rule]:
    """The rules of a norm."""
    yield Rule(f"{ours}/scale", f"{theirs}.weight")
    if bias:
        yield Rule(f"{ours}/bias", f"{theirs}.bias")


def prefixed(rules: Iterable[Rule], theirs: str) -> list[Rule]:
    """The same rules for tensors whose names begin with `theirs`."""
    return [dataclasses.replace(rule, theirs=theirs + rule.theirs) for rule in rules]


def pieces(
    rules: Iterable[Rule], shapes: Mapping[str, jax.ShapeDtypeStruct], first: Mapping[str, int] = MappingProxyType({})
) -> list[Piece]:
    """What every rule means for parameters of these shapes, in the order of the rules. Every parameter has exactly one rule.

    Args:
        first: by path, the layer of theirs that is the first one of ours; 0 for the others.
    """
    rules = list(rules)
    ours = [rule.ours for rule in rules]
    assert sorted(ours) == sorted(shapes), sorted(set(ours) ^ set(shapes)) or "a parameter has two rules"
    return [piece for rule in rules for piece in _expand(rule, shapes[rule.ours].shape, first.get(rule.ours, 0))]


def count(rule: Rule, shape: Shape) -> int:
    """How many tensors a rule means for a parameter of this shape."""
    return math.prod(shape[: len(_leading(rule))])


def _leading(rule: Rule) -> list[str]:
    """What the axes in front of a parameter are, of which each has tensors of its own."""
    return [name for name in ("layer", "expert") if f"{{{name}}}" in rule.theirs]


def _expand(rule: Rule, shape: Shape, first: int) -> Iterator[Piece]:
    leading = _leading(rule)
    sizes, own = shape[: len(leading)], shape[len(leading) :]
    theirs = rule.layout.theirs(own)
    count = theirs[0] if rule.parts > 1 else None
    whole = (theirs[0] * rule.parts, *theirs[1:]) if rule.parts > 1 else theirs
    for index in itertools.product(*map(range, sizes)):
        at = dict(zip(leading, index, strict=True))
        name = rule.theirs.format(**at | {"layer": at.get("layer", 0) + first})
        yield Piece(name, whole, rule.ours, index, rule.layout, rule.part * (count or 0), count)
