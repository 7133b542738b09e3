"""Where a parameter grows, a part at a time: in the host's memory if that is where it will stay, or else on the accelerators."""

import functools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from mmjax.typing import AnyArray, Array
from mmjax.weights.tensors import Ranges, spell_out

_STRIP = 128  # rows that are transposed at a time: their transpose stays in the processor's cache
_PADDING = 64  # bytes behind each of these rows; rows a power of two apart would fall on the same lines of the cache
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

        Returns an array that is ready when that is done, if it is not done at once: until then, the values stay in memory.
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


def region_shape(region: Ranges) -> tuple[int, ...]:
    """The shape of a region."""
    return tuple(stop - start for start, stop in region)


def _devices_by_region(
    sharding: Sharding, shape: tuple[int, ...]
) -> dict[Ranges, list[jax.Device]]:
    """The parts of an array that devices of this process hold, and which devices hold each. All parts have the same shape."""
    found: dict[Ranges, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        found.setdefault(spell_out(index, shape), []).append(device)
    return found


def copy(target: np.ndarray, value: np.ndarray) -> None:
    """target[...] = value, cast where the dtypes differ; quick also where the last two axes lie in memory the other way round."""
    if target.dtype == value.dtype:
        # numpy copies numbers of its own faster than those of ml_dtypes.
        target, value = (array.view(f"u{array.itemsize}") for array in (target, value))
    if value.ndim < 2 or value.strides[-1] == value.itemsize:
        target[...] = value
        return
    rows, width = value.shape[-1], value.shape[-2]
    strip = np.empty((min(_STRIP, rows), width + _PADDING // target.itemsize), target.dtype)
    strip = strip[:, :width]
    for index in np.ndindex(value.shape[:-2]):
        for start in range(0, rows, _STRIP):
            part = value[index].T[start : start + _STRIP]
            with np.errstate(over="ignore"):  # what becomes infinite is refused by the callers
                strip[: len(part)] = part
            target[index][:, start : start + len(part)] = strip[: len(part)].T


class HostTarget:
    """A parameter for the CPU: written where it will stay, and never copied.

    numpy asks the kernel for large pages, which XLA does not; touching new memory is then ten times as fast.
    """

    chunk = 16 * 1024 * 1024
    concurrent = True

    def __init__(self, shape: jax.ShapeDtypeStruct, sharding: Sharding):
        self._shape, self._sharding = shape.shape, sharding
        self._held = _devices_by_region(sharding, shape.shape)
        self.regions = tuple(self._held)
        self._buffers = []
        for region in self.regions:
            own, dtype = region_shape(region), np.dtype(shape.dtype)
            size = math.prod(own) * dtype.itemsize
            memory = np.empty(size + _ALIGNMENT, np.uint8)
            start = -memory.ctypes.data % _ALIGNMENT
            self._buffers.append(memory[start : start + size].view(dtype).reshape(own))

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
    """A parameter on accelerators: it begins as zeros there. Values are sent as they lie in memory, and transposed, cast and put in their
    place there."""

    chunk = 32 * 1024 * 1024
    concurrent = False

    def __init__(self, shape: jax.ShapeDtypeStruct, sharding: Sharding):
        self._final = sharding
        if not isinstance(sharding, NamedSharding):  # one device is a mesh, too
            (device,) = sharding.device_set
            sharding = NamedSharding(Mesh(np.array([device]), ("device",)), PartitionSpec())
        self._sharding = sharding
        self._held = _devices_by_region(sharding, shape.shape)
        self.regions = tuple(self._held)
        self._array = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=sharding)(
            shape.shape, shape.dtype
        )

    def write(self, first: tuple[int, ...], values: Sequence[np.ndarray]) -> Array:
        # Whether the last two axes lie in memory the other way round.
        transposed = all(
            value.ndim >= 2
            and not value.flags.c_contiguous
            and value.swapaxes(-1, -2).flags.c_contiguous
            for value in values
        )
        lead = len(first) - values[0].ndim
        mesh, spec = self._sharding.mesh, self._sharding.spec
        spec = PartitionSpec(*spec, *(None,) * (len(first) - len(spec)))
        sent_spec = _swapped(spec) if transposed else spec
        shards = []
        for devices, value in zip(self._held.values(), values, strict=True):
            rows = np.asarray(value.swapaxes(-1, -2) if transposed else value, order="C")
            rows = rows.reshape((1,) * lead + rows.shape)
            shards += [jax.device_put(rows, device) for device in devices]
        # One array whose part on each device is the value of that device's region.
        whole = []
        for size, axes in zip(shards[0].shape, sent_spec, strict=True):
            names = () if axes is None else (axes,) if isinstance(axes, str) else axes
            whole.append(size * math.prod(mesh.shape[name] for name in names))
        sent = jax.make_array_from_single_device_arrays(
            tuple(whole), NamedSharding(mesh, sent_spec), shards
        )
        start = np.asarray(first, np.int32)
        self._array, done = _written(
            self._array, sent, start, mesh=mesh, spec=spec, transposed=transposed
        )
        return done

    def array(self) -> Array:
        if self._final == self._sharding:
            return self._array
        shards = [shard.data for shard in self._array.addressable_shards]
        return jax.make_array_from_single_device_arrays(self._array.shape, self._final, shards)


@functools.partial(jax.jit, static_argnames=("mesh", "spec", "transposed"), donate_argnums=0)
def _written(
    target: Array,
    value: Array,
    first: AnyArray,
    *,
    mesh: Mesh,
    spec: PartitionSpec,
    transposed: bool,
) -> tuple[Array, Array]:
    """The parameter with a value in its place, which every device does by itself; and a number that is ready when that is done."""

    def local(target: Array, value: Array, first: AnyArray) -> tuple[Array, Array]:
        part = (value.swapaxes(-1, -2) if transposed else value).astype(target.dtype)
        return jax.lax.dynamic_update_slice(
            target, part, [first[axis] for axis in range(target.ndim)]
        ), first.sum()

    places = (spec, _swapped(spec) if transposed else spec, PartitionSpec())
    return jax.shard_map(
        local, mesh=mesh, in_specs=places, out_specs=(spec, PartitionSpec()), check_vma=False
    )(target, value, first)


def _swapped(spec: PartitionSpec) -> PartitionSpec:
    """The spec with its last two axes swapped."""
    return PartitionSpec(*spec[:-2], spec[-1], spec[-2])
