"""Copies between arrays whose axes lie in memory in different orders.

Which part of a parameter each device holds, and which part of a file that is.

Where parameters grow, piece by piece: in the host's memory if that is where they will stay, or else on the accelerators.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from mmjax.typing import AnyArray, Array
from mmjax.weights.rules import TensorSlice
from mmjax.weights.tensors import Ranges, spell_out

_STRIP = 128  # rows that are turned at a time: their turned part stays in the processor's cache
_PADDING = 64  # bytes behind each of these rows; rows a power of two apart would fall on the same lines of the cache


def copy(target: np.ndarray, value: np.ndarray) -> None:
    """target[...] = value, cast where the dtypes differ; quick also where the last two axes lie the other way round."""
    if (
        target.dtype == value.dtype
    ):  # numpy copies numbers of its own faster than those of ml_dtypes
        target, value = (array.view(f"u{array.itemsize}") for array in (target, value))
    if value.ndim < 2 or value.strides[-1] == value.itemsize:
        target[...] = value
        return
    for index in np.ndindex(value.shape[:-2]):
        _turn(target[index], value[index].T)


def _turn(target: np.ndarray, rows: np.ndarray) -> None:
    """target[...] = rows.T"""
    width = rows.shape[1]
    strip = np.empty((min(_STRIP, len(rows)), width + _PADDING // target.itemsize), target.dtype)[
        :, :width
    ]
    for start in range(0, len(rows), _STRIP):
        part = rows[start : start + _STRIP]
        with np.errstate(
            over="ignore"
        ):  # what is infinite then is refused by those who read or write it
            strip[: len(part)] = part
        target[:, start : start + len(part)] = strip[: len(part)].T


def in_order(value: np.ndarray) -> np.ndarray:
    """The same numbers with the last axis fastest: the array itself if it is so already."""
    if value.flags.c_contiguous:
        return value
    ordered = np.empty(value.shape, value.dtype)
    copy(ordered, value)
    return ordered


def held(sharding: Sharding, shape: tuple[int, ...]) -> dict[Ranges, list[jax.Device]]:
    """The parts of an array that devices of this process hold, and which devices hold each. All parts have the same shape."""
    found: dict[Ranges, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        found.setdefault(spell_out(index, shape), []).append(device)
    return found


def lengths(ranges: Ranges) -> tuple[int, ...]:
    """The shape of a part."""
    return tuple(stop - start for start, stop in ranges)


def in_file(piece: TensorSlice, own: Ranges) -> Ranges:
    """The part of a piece's tensor that has to be read for a part of our array (of which `own` leaves out the axes of layer and expert).

    Along axes that the layout mixes with others, all of it.
    """
    axes = piece.layout.axes(len(own))
    return tuple(
        (0, size) if axis is None else own[axis]
        for size, axis in zip(piece.own_shape, axes, strict=True)
    )


def turned(piece: TensorSlice, own: Ranges, value: np.ndarray) -> np.ndarray:
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
        box = tuple(
            (min(start for start, _ in axis), max(stop for _, stop in axis))
            for axis in zip(*group, strict=True)
        )
        fills = math.prod(lengths(box)) <= sum(math.prod(lengths(part)) for part in group)
        found += [box] if fills else sorted(group)
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


_ALIGNMENT = 64  # bytes; XLA copies what is not aligned to it


class Target(Protocol):
    """A parameter in the making.

    Attributes:
        regions: the different parts of it that devices of this process hold, all of one shape.
        chunk: how many bytes should be read at once.
        concurrent: whether `write` may be called from several threads.
    """

    regions: tuple[Ranges, ...]
    chunk: int
    concurrent: bool

    def write(self, first: tuple[int, ...], values: Sequence[np.ndarray]) -> Array | None:
        """Puts an array into each region, at the place `first` in it; values have the last axes of the parameter.

        Returns what is there when that is done, if it is not done at once: until then, the values stay in memory.
        """
        ...

    def array(self) -> Array:
        """The parameter, when everything is written."""
        ...


def make_target(shape: jax.ShapeDtypeStruct, sharding: Sharding) -> Target:
    """A target for a parameter of this shape, dtype and sharding."""
    devices: set[Any] = sharding.device_set
    on_host = all(device.platform == "cpu" for device in devices)
    return HostTarget(shape, sharding) if on_host else DeviceTarget(shape, sharding)


class HostTarget:
    """A parameter for the CPU: written where it will stay, and never copied.

    numpy asks the kernel for large pages, which XLA does not; touching new memory is then ten times as fast.
    """

    chunk = 16 * 1024 * 1024
    concurrent = True

    def __init__(self, shape: jax.ShapeDtypeStruct, sharding: Sharding):
        self._shape, self._sharding = shape.shape, sharding
        self._held = held(sharding, shape.shape)
        self.regions = tuple(self._held)
        self._buffers = [
            _aligned(lengths(region), np.dtype(shape.dtype)) for region in self.regions
        ]

    def write(self, first: tuple[int, ...], values: Sequence[np.ndarray]) -> None:
        for buffer, value in zip(self._buffers, values, strict=True):
            lead = len(first) - value.ndim
            place: list[Any] = [
                slice(start, start + size)
                for start, size in zip(first[lead:], value.shape, strict=True)
            ]
            copy(buffer[(*first[:lead], *place, ...)], value)

    def array(self) -> Array:
        parts = zip(self._held.values(), self._buffers, strict=True)
        shards = [
            jax.device_put(buffer, device, may_alias=True)
            for devices, buffer in parts
            for device in devices
        ]
        return jax.make_array_from_single_device_arrays(self._shape, self._sharding, shards)


class DeviceTarget:
    """A parameter on accelerators: it begins as zeros there; what was read is sent as it is, and turned, cast and put in place there."""

    chunk = 32 * 1024 * 1024
    concurrent = False

    def __init__(self, shape: jax.ShapeDtypeStruct, sharding: Sharding):
        self._final = sharding
        self._sharding = _named(sharding)
        self._held = held(self._sharding, shape.shape)
        self.regions = tuple(self._held)
        self._array = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=self._sharding)(
            shape.shape, shape.dtype
        )

    def write(self, first: tuple[int, ...], values: Sequence[np.ndarray]) -> Array:
        turn = all(_is_turned(value) for value in values)
        lead = len(first) - values[0].ndim
        spec = _complete(self._sharding.spec, len(first))
        sent = self._send(values, lead, _swapped(spec) if turn else spec, turn=turn)
        start = np.asarray(first, np.int32)
        self._array, done = _written(
            self._array, sent, start, mesh=self._sharding.mesh, spec=spec, turn=turn
        )
        return done

    def _send(
        self, values: Sequence[np.ndarray], lead: int, spec: PartitionSpec, *, turn: bool
    ) -> Array:
        """One array whose part on each device is the value of that device's region."""
        shards = []
        for devices, value in zip(self._held.values(), values, strict=True):
            rows = np.asarray(value.swapaxes(-1, -2) if turn else value, order="C")
            shards += [
                jax.device_put(rows.reshape((1,) * lead + rows.shape), device) for device in devices
            ]
        mesh = self._sharding.mesh
        whole = [size * _ways(mesh, axes) for size, axes in zip(shards[0].shape, spec, strict=True)]
        return jax.make_array_from_single_device_arrays(
            tuple(whole), NamedSharding(mesh, spec), shards
        )

    def array(self) -> Array:
        if self._final == self._sharding:
            return self._array
        shards = [shard.data for shard in self._array.addressable_shards]
        return jax.make_array_from_single_device_arrays(self._array.shape, self._final, shards)


@functools.partial(jax.jit, static_argnames=("mesh", "spec", "turn"), donate_argnums=0)
def _written(
    target: Array, value: Array, first: AnyArray, *, mesh: Mesh, spec: PartitionSpec, turn: bool
) -> tuple[Array, Array]:
    """The parameter with a value in its place, which every device does by itself; and a number that is there when that is done."""

    def local(target: Array, value: Array, first: AnyArray) -> tuple[Array, Array]:
        ours = (value.swapaxes(-1, -2) if turn else value).astype(target.dtype)
        return jax.lax.dynamic_update_slice(
            target, ours, [first[axis] for axis in range(target.ndim)]
        ), first.sum()

    places = (spec, _swapped(spec) if turn else spec, PartitionSpec())
    return jax.shard_map(
        local, mesh=mesh, in_specs=places, out_specs=(spec, PartitionSpec()), check_vma=False
    )(target, value, first)


def _named(sharding: Sharding) -> NamedSharding:
    """The sharding over a mesh; one device is a mesh, too."""
    if isinstance(sharding, NamedSharding):
        return sharding
    (device,) = sharding.device_set
    return NamedSharding(Mesh(np.array([device]), ("device",)), PartitionSpec())


def _complete(spec: PartitionSpec, rank: int) -> PartitionSpec:
    return PartitionSpec(*spec, *(None,) * (rank - len(spec)))


def _swapped(spec: PartitionSpec) -> PartitionSpec:
    return PartitionSpec(*spec[:-2], spec[-1], spec[-2])


def _ways(mesh: Any, axes: Any) -> int:
    """How many pieces the mesh axes that one entry of a spec names cut an axis into."""
    names = () if axes is None else (axes,) if isinstance(axes, str) else axes
    return math.prod(mesh.shape[name] for name in names)


def _is_turned(value: np.ndarray) -> bool:
    """Whether the last two axes lie in memory the other way round."""
    return (
        value.ndim >= 2
        and not value.flags.c_contiguous
        and value.swapaxes(-1, -2).flags.c_contiguous
    )


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
