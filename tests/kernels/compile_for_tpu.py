"""Compiles attention for TPUs on a machine without one and says what it needs.

A process of its own, because libtpu reads its environment once:

    echo '[{"topology": "v5e:2x2", "mask": "causal"}]' | PYTHONPATH=.:.aot python tests/kernels/compile_for_tpu.py

A case may also say head_dim, length, batch, heads, kv_heads, softcap, gradient (false: the forward pass alone), and split: [ways to split
rows, ways to split heads] over the devices of the topology, instead of the first of them. Needs libtpu of the version that jax names, as
`make aot` brings it.
"""

import json
import os
import re
import sys
import time

# Set before jax: nobody is asked for a TPU, and other processes may compile at the same time.
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.distributed.mesh import MESH_AXES, ROW_AXES
from mmjax.kernels.attention import IntervalMask, attention
from tests.kernels.program_text import largest_array

DEFAULTS = {
    "head_dim": 128,
    "length": 1000,
    "batch": 2,
    "heads": 8,
    "kv_heads": 2,
    "softcap": None,
    "gradient": True,
    "split": None,
}
MASKS = {
    "none": lambda segments: None,
    "full": lambda segments: IntervalMask.full(*segments.shape, segments.shape[1]),
    "causal": lambda segments: IntervalMask.causal(*segments.shape),
    "segments": IntervalMask.from_segments,
}


def function(case):
    def forward(q, k, v, segments):
        return attention(
            q, k, v, MASKS[case["mask"]](segments), softcap=case["softcap"], implementation="splash"
        )

    if not case["gradient"]:
        return lambda q, k, v, dout, segments: forward(q, k, v, segments)

    def loss(q, k, v, dout, segments):
        return (forward(q, k, v, segments).astype(jnp.float32) * dout).sum()

    return jax.value_and_grad(loss, (0, 1, 2))


def mesh(case):
    """With the axes of a training run."""
    rows, heads = case["split"] or (1, 1)
    devices = np.array(topologies.get_topology_desc(case["topology"], "tpu").devices)[
        : rows * heads
    ]
    return Mesh(
        devices.reshape(rows, 1, 1, 1, heads),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
    )


def arguments(case, mesh):
    """q, k, v, dout and segments, as shapes on the mesh."""

    def shape(*dimensions, dtype=jnp.bfloat16):
        place = (
            PartitionSpec(ROW_AXES, None, "tensor")
            if len(dimensions) == 4
            else PartitionSpec(ROW_AXES)
        )
        return jax.ShapeDtypeStruct(dimensions, dtype, sharding=NamedSharding(mesh, place))

    q = shape(case["batch"], case["length"], case["heads"], case["head_dim"])
    k = shape(case["batch"], case["length"], case["kv_heads"], case["head_dim"])
    return q, k, k, q, shape(case["batch"], case["length"], dtype=jnp.int32)


def needs(case):
    case = DEFAULTS | case
    started = time.monotonic()
    try:
        devices = mesh(case)
        with jax.sharding.use_abstract_mesh(
            devices.abstract_mesh
        ):  # as jax.set_mesh, which wants devices that are there
            lowered = jax.jit(function(case)).lower(*arguments(case, devices))
        program = lowered.compile()
    except Exception as error:
        return case | {"error": f"{type(error).__name__}: {error}"}
    text = program.as_text()
    return case | {
        "kernels": sorted(
            re.findall(r'%(splash_\w+?)[.\d]* = .*custom_call_target="tpu_custom_call"', text)
        ),
        "largest": largest_array(lowered.as_text(), text),
        "gathered": len(
            re.findall(r" (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", text)
        ),
        "temporary": program.memory_analysis().temp_size_in_bytes,
        "seconds": round(time.monotonic() - started, 1),
    }


def main():
    for case in json.load(sys.stdin):
        print(json.dumps(needs(case)), flush=True)


if __name__ == "__main__":
    main()
