"""Compiles the kernels for an H200 on a machine without one and says what they need.

A process of its own, because the CUDA plugin reads its environment once:

    echo '[{"kernel": "forward", "head_dim": 128}]' | \
        PYTHONPATH=.:.aot python tests/kernels/mosaic_gpu/compile_for_h200.py

The kernels are forward, queries, keys and fused; "whole" is attention with its gradients, "layers" two layers of it, rematerialised. A case
may also say tile, masked (which of the table's tiles), intervals (1 or 2), softcap, dtype, batch, rows, keys, heads, kv_heads and
deterministic. With --table instead of cases, a table of every kernel for every head dimension.

Needs jax-cuda13-plugin and jax-cuda13-pjrt of the version of jax, as `make aot` brings them, and an assembler: that of CUDA, or that of the
extra aot-cuda.
"""

import functools
import json
import os
import re
import sys
import tempfile
import time

# Set before jax: no GPU libraries are looked for, and what the compiler says is printed.
os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
os.environ |= {f"MOSAIC_GPU_DUMP_{what}": "1" for what in ("PTX", "PTXAS", "RESOURCES")}
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from mmjax.kernels.attention import IntervalMask
from mmjax.kernels.attention.mosaic_gpu import attention, backward_fused, tuning
from mmjax.kernels.attention.mosaic_gpu.backward_keys import gradient_of_keys
from mmjax.kernels.attention.mosaic_gpu.backward_queries import gradient_of_queries
from mmjax.kernels.attention.mosaic_gpu.forward import forward
from tests.kernels.program_text import largest_array

# What XLA wants to know of a GPU (GpuTargetConfigProto), with the numbers of an H200 SXM.
H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 device_memory_size: 150754820096
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""

DEFAULTS = {
    "masked": True,
    "intervals": 1,
    "softcap": None,
    "dtype": "bfloat16",
    "batch": 2,
    "rows": 1024,
    "keys": 1024,
}
DEFAULTS |= {"heads": 8, "kv_heads": 2, "deterministic": True}


def arguments(case, placement):
    """q, k, v, dout, log_total, delta and the mask, as shapes."""

    def shape(*dimensions, dtype=case["dtype"]):
        return jax.ShapeDtypeStruct(dimensions, jnp.dtype(dtype), sharding=placement)

    q = shape(case["batch"], case["rows"], case["heads"], case["head_dim"])
    k = shape(case["batch"], case["keys"], case["kv_heads"], case["head_dim"])
    numbers = shape(case["batch"], case["heads"], case["rows"], dtype="float32")
    bound = shape(case["batch"], case["rows"], dtype="int32")
    return q, k, k, q, numbers, numbers, IntervalMask(*[bound] * (2 * case["intervals"]))


def function(case):
    sizes = tuning.tiles(case["head_dim"], masked=case["masked"])
    kernel, scale, softcap = case["kernel"], case["head_dim"] ** -0.5, case["softcap"]
    if kernel in ("whole", "layers"):
        attend = functools.partial(
            attention, scale=scale, softcap=softcap, deterministic=case["deterministic"]
        )
        return gradients_of_layers(attend) if kernel == "layers" else gradients_of_attention(attend)
    tile = tuning.Tile(*case["tile"]) if "tile" in case else getattr(sizes, kernel)
    if kernel == "forward":
        return lambda q, k, v, dout, log_total, delta, mask: forward(
            q, k, v, mask, scale, softcap, tile, remainder=True
        )
    gradient = {
        "queries": gradient_of_queries,
        "keys": gradient_of_keys,
        "fused": backward_fused.gradients,
    }[kernel]
    return lambda *arrays: gradient(*arrays, scale, softcap, tile)


def gradients_of_attention(attend):
    def loss(q, k, v, dout, mask):
        return (attend(q, k, v, mask).astype(jnp.float32) * dout).sum()

    return lambda q, k, v, dout, log_total, delta, mask: jax.grad(loss, (0, 1, 2))(
        q, k, v, dout, mask
    )


def gradients_of_layers(attend):
    """As in a decoder: the same layer in a loop, made again in the backward pass."""

    def loss(q, k, v, dout, mask):
        layer = jax.checkpoint(lambda x, _: (x + attend(x, k, v, mask), None))
        return (jax.lax.scan(layer, q, None, length=2)[0].astype(jnp.float32) * dout).sum()

    return lambda q, k, v, dout, log_total, delta, mask: jax.grad(loss, (0, 1, 2))(
        q, k, v, dout, mask
    )


def said_while(action):
    """What an action returns, and what it and the compilers in it print."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(1), os.dup(2)
        sys.stdout.flush(), sys.stderr.flush()
        try:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
            result = action()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os.dup2(kept[0], 1), os.dup2(kept[1], 2)
        file.seek(0)
        return result, file.read().decode(errors="replace")


def compiled(case, placement):
    """The program before and after the compiler."""
    lowered = jax.jit(function(case)).lower(*arguments(case, placement))
    return lowered, lowered.compile()


def needs(case, placement):
    case = DEFAULTS | case
    started = time.monotonic()
    try:
        (lowered, program), said = said_while(lambda: compiled(case, placement))
    except Exception as error:
        return case | {"error": f"{type(error).__name__}: {error}"}
    spills = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said
    )
    return case | {
        "registers": max(map(int, re.findall(r"Used (\d+) registers", said))),
        "spilled": sum(int(number) for entry in spills for number in entry),
        "shared": max(map(int, re.findall(r"smem_scratch_bytes=(\d+)", said))),
        "serialized": "are serialized" in said,
        "wgmma": sorted(
            set(re.findall(r"wgmma\.mma_async\.sync\.aligned\.(m\d+n\d+k\d+\.\w+\.\w+)", said))
        ),
        "wgmma_count": said.count("wgmma.mma_async"),
        "largest": largest_array(lowered.as_text(), program.as_text()),
        "temporary": program.memory_analysis().temp_size_in_bytes,
        "seconds": round(time.monotonic() - started, 1),
    }


def every_kernel():
    """Each kernel for each head dimension, without and with a mask where the table of tiles knows a difference, and with a softcap."""
    for head_dim in tuning.HEAD_DIMENSIONS:
        for kernel in tuning.Tiles._fields:
            plain, masked = (
                getattr(tuning.tiles(head_dim, masked=masked), kernel) for masked in (False, True)
            )
            variants = (
                [{}, {"softcap": 30.0}]
                if plain == masked
                else [{"masked": False}, {}, {"softcap": 30.0}]
            )
            yield from (
                {"kernel": kernel, "head_dim": head_dim} | variant for variant in variants if masked
            )


def table(cases):
    """As Markdown; memory in bytes, with what is spilled as stack, stores and loads together."""
    columns = ("registers", "spilled", "shared", "wgmma_count", "temporary")
    yield "| head dimension | kernel | tile, rows x keys | softcap | " + " | ".join(columns) + " |"
    yield "|---" * (4 + len(columns)) + "|"
    for case in cases:
        tile = getattr(tuning.tiles(case["head_dim"], masked=case["masked"]), case["kernel"])
        what = (
            case["head_dim"],
            case["kernel"],
            f"{tile.rows} x {tile.keys}",
            "yes" if case["softcap"] else "no",
        )
        yield (
            "| "
            + " | ".join(
                str(number)
                for number in (*what, *(case.get(column, case.get("error")) for column in columns))
            )
            + " |"
        )


def main():
    device = topologies.get_topology_desc(platform="cuda", target_config=H200, topology="1x1x1")
    placement = jax.sharding.NamedSharding(
        topologies.make_mesh(device, (1,), ("x",)), jax.sharding.PartitionSpec()
    )
    if "--table" in sys.argv:
        for line in table(needs(case, placement) for case in every_kernel()):
            print(line, flush=True)
        return
    for case in json.load(sys.stdin):
        print(json.dumps(needs(case, placement)), flush=True)


if __name__ == "__main__":
    main()
