"""A kernel on a mesh: every device computes its own rows and heads, and the numbers stay (eight virtual devices in a process)."""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmjax.distributed.mesh import MESH_AXES, ROW_AXES
from mmjax.kernels.attention import IntervalMask, attention, splash
from mmjax.kernels.placement import on_each_device

ROWS = {"rows that the mesh divides": 8, "rows that it does not divide": 3}
SCALE = 0.125


@pytest.fixture(scope="module")
def found():
    root = pathlib.Path(__file__).parents[2]
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    result = subprocess.run(
        [sys.executable, __file__], cwd=root, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ROWS)
def test_values_and_gradients_are_those_of_one_device(found, case):
    assert max(found[case]["errors"]) < 1e-5


def test_nothing_is_sent_between_devices(found):
    assert found["rows that the mesh divides"]["sent"] == []
    assert found["rows that the mesh divides"]["sent by tiles"] == []


def test_a_device_has_its_share_of_rows_and_heads(found):
    assert found["rows that the mesh divides"]["seen"] == [2, 128, 2, 64]
    assert found["rows that it does not divide"]["seen"] == [3, 128, 2, 64]


def test_without_a_mesh_it_is_called_as_it_is():
    q, k, v, _ = arrays(2)
    assert on_each_device(lambda *_: q, q, k, v, None) is q


def arrays(batch):
    random = np.random.default_rng(0)
    return [
        jnp.asarray(random.normal(size=(batch, 128, heads, 64)), jnp.float32)
        for heads in (4, 2, 2, 4)
    ]


def _worker():
    mesh = jax.make_mesh((2, 2, 1, 1, 2), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    print(json.dumps({case: _compare(batch, mesh) for case, batch in ROWS.items()}))


def _compare(batch, mesh):
    q, k, v, weight = arrays(batch)
    mask = IntervalMask.from_segments(
        jnp.asarray(np.repeat([1, 2, 0], [50, 60, 18])[None].repeat(batch, 0))
    )
    wanted = _gradients(lambda *x: attention(*x, mask, scale=SCALE, implementation="reference"))(
        q, k, v, weight
    )
    seen = []

    def kernel(q, k, v, mask):
        seen.append(q.shape)
        return splash.attention(q, k, v, mask, SCALE, None, interpret=True)

    rows = ROW_AXES if batch % 4 == 0 else None
    with jax.set_mesh(mesh):
        places = NamedSharding(mesh, PartitionSpec(rows, None, "tensor"))
        step = jax.jit(
            _gradients(lambda q, k, v: on_each_device(kernel, q, k, v, mask)),
            out_shardings=(None, (places,) * 3),
        )
        program = step.lower(*(jax.device_put(x, places) for x in (q, k, v, weight))).compile()
        got = program(*(jax.device_put(x, places) for x in (q, k, v, weight)))
    errors = [
        np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(b)
        for a, b in zip(got[1], wanted[1], strict=True)
    ]
    sent = {"sent": _sent(program), "sent by tiles": _sent(_by_tiles(mesh, places, batch))}
    return {"errors": [float(error) for error in errors], "seen": seen[0]} | sent


def _by_tiles(mesh, places, batch):
    """Attention that is named, as models call it."""
    with jax.set_mesh(mesh):
        shapes = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places) for x in arrays(batch)[:3]
        ]
        step = jax.grad(lambda *x: attention(*x, implementation="xla_chunked").sum(), (0, 1, 2))
        return jax.jit(step, out_shardings=places).lower(*shapes).compile()


def _sent(program):
    """Arrays that travel; the sum of a loss is not part of a kernel, and is a single number."""
    results = re.findall(
        r"= (\S+) (?:all-gather|all-to-all|all-reduce|collective-permute)", program.as_text()
    )
    return [shape for shape in results if "," in shape]


def _gradients(attend):
    return jax.value_and_grad(functools.partial(_weighted, attend), (0, 1, 2))


def _weighted(attend, q, k, v, weight):
    return jnp.sum(weight * attend(q, k, v))


if __name__ == "__main__":
    _worker()
