"""The mesh of devices, and how parameters, batches and activations are split over it.

Mesh axes: `data` splits rows only; `fsdp` splits rows and also the parameters and moments, which are gathered where they are used; `tensor`
splits heads, MLP hidden units and the vocabulary. Axis types are Auto: the compiler inserts the communication. Run a step under
`jax.set_mesh(mesh)`.

Models name axes by what they mean ("embed", "heads"), and only `RULES` says which mesh axis that is. `constrain_batch` and `gather_fsdp`
are hints that models give the compiler; without a mesh they do nothing. They are needed because `fsdp` splits rows and parameters both:
left alone, the compiler keeps the parameters in place and computes every row on every device.
"""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.errors import InputError
from mmjax.recipe.recipe import MeshConfig, Stage
from mmjax.typing import Array, Batch

MESH_AXES = ("data", "fsdp", "expert", "context", "tensor")
ROW_AXES = ("data", "fsdp")
SMALL = 2**22  # elements (16 MB in float32): below, an axis that does not divide may stay whole

# Logical axis of a parameter -> mesh axis. A mesh axis serves one axis of a parameter at most: the first that names it and that it divides.
RULES: dict[str, str | None] = {
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocabulary": "tensor",
    "expert": "expert",
    "layers": None,
    "norm": None,
}


def constrain_batch(x: Array) -> Array:
    """Activations [rows, ...] stay split by rows, other axes as the compiler likes. A number of rows that does not divide is left to it."""
    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in ROW_AXES)
    if ways == 1 or x.shape[0] % ways:
        return x
    return jax.lax.with_sharding_constraint(
        x, PartitionSpec(ROW_AXES, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
    )


def gather_fsdp(weights: Array, axes: tuple[str | None, ...]) -> Array:
    """A parameter with these logical axes, made whole over `fsdp` before it is used; what `tensor` splits stays split."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] == 1:
        return weights
    kept = [None if name is None or RULES[name] == "fsdp" else RULES[name] for name in axes]
    divided = [
        axis if axis is None or size % mesh.shape[axis] == 0 else None
        for axis, size in zip(kept, weights.shape, strict=True)
    ]
    return jax.lax.with_sharding_constraint(weights, PartitionSpec(*divided))


def parameter_shardings(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    axes: Mapping[str, tuple[str | None, ...]],
    mesh: Mesh,
) -> tuple[dict[str, NamedSharding], list[str]]:
    """Sharding of each parameter, and notes about axes that stay whole because their mesh axis does not divide them.

    Args:
        shapes: by path, such as `parameters.abstract(config)[1]`.
        axes: logical names by path, `parameters.logical_axes(config)`.

    Raises:
        InputError: a parameter of more than 4 million elements would have to stay whole along such an axis.
    """
    notes: list[str] = []

    def spec(path: str, shape: tuple[int, ...]) -> PartitionSpec:
        assert len(axes[path]) == len(shape), (path, shape, axes[path])
        chosen: list[str | None] = []
        for size, name in zip(shape, axes[path], strict=True):
            axis = None if name is None else RULES[name]
            if axis is None or axis in chosen or mesh.shape[axis] == 1:
                chosen.append(None)
            elif size % mesh.shape[axis] == 0:
                chosen.append(axis)
            else:
                what = f"{path} {list(shape)}: axis {name!r} of {size} is not divisible by mesh.{axis} = {mesh.shape[axis]}"
                if math.prod(shape) > SMALL:
                    raise InputError(
                        f"{what}, and the parameter is too large to be held whole on every device."
                    )
                notes.append(f"{what}; it stays whole.")
                chosen.append(None)
        return PartitionSpec(*chosen)

    return {
        path: NamedSharding(mesh, spec(path, leaf.shape)) for path, leaf in shapes.items()
    }, notes


def check_axes(config: MeshConfig) -> dict[str, int]:
    """The sizes as they stand, -1 for one that is not known yet; needs no device. Raises InputError if no number of devices would do."""
    sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
    for axis in ("expert", "context"):
        if sizes[axis] != 1:
            raise InputError(
                f"mesh.{axis} must be 1, as no part of the model is split over {axis!r}; it is {sizes[axis]}."
            )
    if list(sizes.values()).count(-1) > 1 or any(
        size < 1 and size != -1 for size in sizes.values()
    ):
        raise InputError(
            f"mesh: sizes must be positive, and one of them at most -1 (whatever is left); they are {sizes}."
        )
    return sizes


def axis_sizes(config: MeshConfig, devices: int) -> dict[str, int]:
    """Devices along each mesh axis.

    Raises:
        InputError: the sizes do not multiply to the number of devices, or name an axis over which nothing of this model is split.
    """
    sizes = check_axes(config)
    unknown = [axis for axis in MESH_AXES if sizes[axis] == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if devices % known or (not unknown and known != devices):
        raise InputError(
            f"mesh: {sizes} needs {'a multiple of ' if unknown else ''}{known} devices, and there are {devices}."
        )
    return sizes | dict.fromkeys(unknown, devices // known)


def make_mesh(
    config: MeshConfig | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh over all devices, or the given ones; neighbours in the machine are neighbours on the inner axes.

    Raises:
        InputError: as `axis_sizes`; or there are several processes, for each of which the loader would read the whole batch.
    """
    if jax.process_count() > 1:
        raise InputError(
            f"There are {jax.process_count()} processes; training runs in one, over all the devices that it sees."
        )
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config or MeshConfig(), len(devices))
    return jax.make_mesh(
        tuple(sizes.values()),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
        devices=devices,
    )


def check_layout(sizes: Mapping[str, int], stage: Stage) -> None:
    """Whether a stage can be laid out on a mesh of these `axis_sizes`; needs no device.

    Raises:
        InputError: a number of heads that `tensor` does not divide, or rows that `data` x `fsdp` do not.
    """
    model = stage.model
    heads = {
        "vision.heads": model.vision.heads,
        "decoder.heads": model.decoder.heads,
        "decoder.kv_heads": model.decoder.kv_heads,
    }
    for name, count in (heads | model.connector.head_counts()).items():
        if count % sizes["tensor"]:
            raise InputError(
                f"stage {stage.name!r}: {name} {count} must be divisible by mesh.tensor = {sizes['tensor']}, as a head is never cut."
            )
    ways = sizes["data"] * sizes["fsdp"]
    if stage.batch_size % (ways * stage.gradient_accumulation_steps):
        raise InputError(
            f"stage {stage.name!r}: batch_size {stage.batch_size} must be divisible by "
            f"{ways * stage.gradient_accumulation_steps}: gradient_accumulation_steps = {stage.gradient_accumulation_steps} parts "
            f"over data x fsdp = {ways} devices."
        )


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Puts a batch of numpy arrays on the devices of the mesh, rows over `data` and `fsdp`; the process gives all rows."""
    sharding = NamedSharding(mesh, PartitionSpec(ROW_AXES))
    return jax.tree.map(
        lambda value: jax.make_array_from_process_local_data(sharding, value), batch
    )
