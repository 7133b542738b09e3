"""Kernels on a mesh of devices: each device computes its own rows and heads.

The compiler splits what it has written itself. A kernel is closed to it, and so are loops over rows: it refuses, or gathers all rows on
every device. But batch rows are independent of each other, and so are key/value heads with the query heads of their group, and those are
what a mesh splits.
"""

import math
from collections.abc import Callable

import jax
from jax.sharding import AbstractMesh, PartitionSpec

from mmjax.distributed.mesh import ROW_AXES, RULES
from mmjax.kernels.attention.mask import IntervalMask
from mmjax.typing import Array, Float

type Attend = Callable[[Array, Array, Array, IntervalMask | None], Array]


def on_each_device(
    attend: Attend,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask | None,
) -> Float[Array, "B T N H"]:
    """attend(q, k, v, mask), on every device of the mesh (`jax.set_mesh`) for its share of the rows and heads.

    Rows or heads whose number the mesh does not divide stay whole: then several devices compute the same. Where there is no mesh, or
    the caller has split its arrays itself (within `jax.shard_map`), it is called as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return attend(q, k, v, mask)
    rows = _dividing(mesh, ROW_AXES, q.shape[0])
    heads = _dividing(mesh, (RULES["kv_heads"],), k.shape[2])
    array, intervals = PartitionSpec(rows, None, heads, None), PartitionSpec(rows, None)
    split = jax.shard_map(
        attend, in_specs=(array, array, array, intervals), out_specs=array, check_vma=False
    )
    return split(q, k, v, mask)


def _dividing(
    mesh: AbstractMesh, names: tuple[str | None, ...], size: int
) -> tuple[str, ...] | None:
    """Those of the mesh axes that there are, if together they divide a number of rows or heads."""
    axes = tuple(name for name in names if name is not None and name in mesh.shape)
    return axes if axes and size % math.prod(mesh.shape[name] for name in axes) == 0 else None
