"""Where parameters grow, piece by piece: in the host's memory if that is where they will stay, or else on the accelerators."""

import functools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from mmjax.typing import AnyArray, Array
from mmjax.weights.memory_order import copy
from mmjax.weights.regions import held, lengths
from mmjax.weights.tensors import Ranges

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
        self._buffers = [_aligned(lengths(region), np.dtype(shape.dtype)) for region in self.regions]

    def write(self, first: tuple[int, ...], values: Sequence[np.ndarray]) -> None:
        for buffer, value in zip(self._buffers, values, strict=True):
            lead = len(first) - value.ndim
            place: list[Any] = [slice(start, start + size) for start, size in zip(first[lead:], value.shape, strict=True)]
            copy(buffer[(*first[:lead], *place, ...)], value)

    def array(self) -> Array:
        parts = zip(self._held.values(), self._buffers, strict=True)
        shards = [jax.device_put(buffer, device, may_alias=True) for devices, buffer in parts for device in devices]
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
        self._array = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=self._sharding)(shape.shape, shape.dtype)

    def write(self, first: tuple[int, ...], values: Sequence[np.ndarray]) -> Array:
        turn = all(_is_turned(value) for value in values)
        lead = len(first) - values[0].ndim
        spec = _complete(self._sharding.spec, len(first))
        sent = self._send(values, lead, _swapped(spec) if turn else spec, turn=turn)
        start = np.asarray(first, np.int32)
        self._array, done = _written(self._array, sent, start, mesh=self._sharding.mesh, spec=spec, turn=turn)
        return done

    def _send(self, values: Sequence[np.ndarray], lead: int, spec: PartitionSpec, *, turn: bool) -> Array:
        """One array whose part on each device is the value of that device's region."""
        shards = []
        for devices, value in zip(self._held.values(), values, strict=True):
            rows = np.asarray(value.swapaxes(-1, -2) if turn else value, order="C")
            shards += [jax.device_put(rows.reshape((1,) * lead + rows.shape), device) for device in devices]
        mesh = self._sharding.mesh
        whole = [size * _ways(mesh, axes) for size, axes in zip(shards[0].shape, spec, strict=True)]
        return jax.make_array_from_single_device_arrays(tuple(whole), NamedSharding(mesh, spec), shards)

    def array(self) -> Array:
        if self._final == self._sharding:
            return self._array
        shards = [shard.data for shard in self._array.addressable_shards]
        return jax.make_array_from_single_device_arrays(self._array.shape, self._final, shards)


@functools.partial(jax.jit, static_argnames=("mesh", "spec", "turn"), donate_argnums=0)
def _written(target: Array, value: Array, first: AnyArray, *, mesh: Mesh, spec: PartitionSpec, turn: bool) -> tuple[Array, Array]:
    """The parameter with a value in its place, which every device does by itself; and a number that is there when that is done."""

    def local(target: Array, value: Array, first: AnyArray) -> tuple[Array, Array]:
        ours = (value.swapaxes(-1, -2) if turn else value).astype(target.dtype)
        return jax.lax.dynamic_update_slice(target, ours, [first[axis] for axis in range(target.ndim)]), first.sum()

    places = (spec, _swapped(spec) if turn else spec, PartitionSpec())
    return jax.shard_map(local, mesh=mesh, in_specs=places, out_specs=(spec, PartitionSpec()), check_vma=False)(target, value, first)


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
    return value.ndim >= 2 and not value.flags.c_contiguous and value.swapaxes(-1, -2).flags.c_contiguous


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
