"""Which part of a parameter each device holds, and which part of a file that is."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Sharding

from mmjax.weights.rules import Piece
from mmjax.weights.tensors import Ranges, spell_out


def held(sharding: Sharding, shape: tuple[int, ...]) -> dict[Ranges, list[jax.Device]]:
    """The parts of an array that devices of this process hold, and which devices hold each. All parts have the same shape."""
    found: dict[Ranges, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        found.setdefault(spell_out(index, shape), []).append(device)
    return found


def lengths(ranges: Ranges) -> tuple[int, ...]:
    """The shape of a part."""
    return tuple(stop - start for start, stop in ranges)


def in_file(piece: Piece, own: Ranges) -> Ranges:
    """The part of a piece's tensor that has to be read for a part of our array (of which `own` leaves out the axes of layer and expert).

    Along axes that the layout mixes with others, all of it.
    """
    axes = piece.layout.axes(len(own))
    return tuple((0, size) if axis is None else own[axis] for size, axis in zip(piece.own_shape, axes, strict=True))


def turned(piece: Piece, own: Ranges, value: np.ndarray) -> np.ndarray:
    """What was read for `in_file(piece, own)`, or some of its rows, as the part of our array; a view where that is possible."""
    axes = piece.layout.axes(len(own))
    cut = tuple(slice(None) if axis in axes else slice(*own[axis]) for axis in range(len(own)))
    return np.asarray(piece.layout.to_ours(value))[cut]


def boxed(parts: Sequence[Ranges]) -> list[Ranges]:
    """The parts of one tensor that are read, so that together they hold all of `parts`, and nothing is read twice.

    Parts of the same rows that fill a box together are read as that box: a file is read fastest in the order in which it lies there.
    """
    groups: dict[object, set[Ranges]] = {}
    for part in parts:
        groups.setdefault(part[:1], set()).add(part)
    found: list[Ranges] = []
    for group in groups.values():
        box = tuple((min(start for start, _ in axis), max(stop for _, stop in axis)) for axis in zip(*group, strict=True))
        fills = math.prod(lengths(box)) <= sum(math.prod(lengths(part)) for part in group)
        found += [box] if fills else sorted(group)
    return found


def within(part: Ranges, box: Ranges) -> tuple[slice, ...] | None:
    """Where a part lies in a box; None if it does not."""
    if any(start < first or stop > last for (start, stop), (first, last) in zip(part, box, strict=True)):
        return None
    return tuple(slice(start - first, stop - first) for (start, stop), (first, _) in zip(part, box, strict=True))
