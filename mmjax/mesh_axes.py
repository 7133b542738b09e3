"""Where arrays live on a mesh of devices, in logical names: the one table, and two hints that models give the compiler.

Models say what an axis means ("embed", "heads", rows); only this file says which mesh axis that is. Without a mesh (`jax.set_mesh`) the
hints do nothing. They are needed because `fsdp` splits rows and parameters both: left alone, the compiler keeps the parameters in place and
computes every row on every device.
"""

import math
from collections.abc import Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.errors import InputError
from mmjax.typing import Array

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


def keep_rows(x: Array) -> Array:
    """Activations [rows, ...] stay split by rows, other axes as the compiler likes. A number of rows that does not divide is left to it."""
    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in ROW_AXES)
    if ways == 1 or x.shape[0] % ways:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROW_AXES, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)))


def gather_for_use(weights: Array, axes: tuple[str | None, ...]) -> Array:
    """A parameter with these logical axes, made whole over `fsdp` before it is used; what `tensor` splits stays split."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] == 1:
        return weights
    kept = [None if name is None or RULES[name] == "fsdp" else RULES[name] for name in axes]
    divided = [axis if axis is None or size % mesh.shape[axis] == 0 else None for axis, size in zip(kept, weights.shape, strict=True)]
    return jax.lax.with_sharding_constraint(weights, PartitionSpec(*divided))


def parameter_shardings(
    shapes: Mapping[str, jax.ShapeDtypeStruct], axes: Mapping[str, tuple[str | None, ...]], mesh: Mesh
) -> tuple[dict[str, NamedSharding], list[str]]:
    """Sharding of each parameter, and notes about axes that stay whole because their mesh axis does not divide them.

    Args:
        shapes: by path, such as `parameters.abstract(config)[1]`.
        axes: logical names by path, `parameters.logical_axes(config)`.

    Raises:
        InputError: a parameter of more than 4 million elements would have to stay whole along such an axis.
    """
    notes: list[str] = []
    shardings = {path: NamedSharding(mesh, _spec(path, shape, axes[path], mesh, notes)) for path, shape in shapes.items()}
    return shardings, notes


def _spec(path: str, shape: jax.ShapeDtypeStruct, names: tuple[str | None, ...], mesh: Mesh, notes: list[str]) -> PartitionSpec:
    assert len(names) == len(shape.shape), (path, shape.shape, names)
    spec: list[str | None] = []
    for size, name in zip(shape.shape, names, strict=True):
        axis = None if name is None else RULES[name]
        if axis is None or axis in spec or mesh.shape[axis] == 1:
            spec.append(None)
        elif size % mesh.shape[axis] == 0:
            spec.append(axis)
        else:
            what = f"{path} {list(shape.shape)}: axis {name!r} of {size} is not divisible by mesh.{axis} = {mesh.shape[axis]}"
            if math.prod(shape.shape) > SMALL:
                raise InputError(f"{what}, and the parameter is too large to be held whole on every device.")
            notes.append(f"{what}; it stays whole.")
            spec.append(None)
    return PartitionSpec(*spec)
