"""Where arrays live on a mesh of devices, in logical names: the one table, and two hints that models give the compiler.

Models say what an axis means ("embed", "heads", rows); only this file says which mesh axis that is. Without a mesh (`jax.set_mesh`) the
hints do nothing. They are needed because `fsdp` splits rows and parameters both: left alone, the compiler keeps the parameters in place and
computes every row on every device.
"""

import math

import jax
from jax.sharding import PartitionSpec

from mmjax.typing import Array

MESH_AXES = ("data", "fsdp", "expert", "context", "tensor")
ROW_AXES = ("data", "fsdp")

# Logical axis of a parameter -> mesh axis. A mesh axis serves one axis of a parameter at most: the first that names it and that it divides.
RULES: dict[str, str | None] = {
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocabulary": "tensor",
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
