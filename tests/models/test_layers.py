"""Stacked layers: a scan over them is a loop over them, whatever the unrolling, and recomputation really saves memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.models.layers import MLP, scan, stack

LAYERS, WIDTH = 6, 8


def make_stack(width=WIDTH, hidden=16):
    def make_block(rngs):
        return MLP(
            width, hidden, "gelu", bias=True, std=None, dtype=jnp.dtype("float32"), rngs=rngs
        )

    return stack(make_block, LAYERS, nnx.Rngs(0))


def residual(block, x, offset):
    x = x + block(x)
    return x if offset is None else x + offset, x.sum()


@pytest.mark.parametrize("unroll", [1, 4, 99])
@pytest.mark.parametrize(("start", "stop"), [(0, None), (2, 5), (5, 6)])
def test_a_scan_is_a_loop_over_the_layers(unroll, start, stop):
    blocks, x = make_stack(), jax.random.normal(jax.random.key(1), (3, WIDTH))
    offsets = jnp.arange(LAYERS, dtype=jnp.float32)
    model_def, params = nnx.split(blocks)
    wanted, sums = x, []
    for layer in range(LAYERS)[start:stop]:
        block = nnx.merge(model_def, jax.tree.map(lambda value, layer=layer: value[layer], params))
        wanted, total = residual(block, wanted, offsets[layer])
        sums.append(total)
    got, outputs = scan(blocks, residual, x, offsets, start=start, stop=stop, unroll=unroll)
    # One unit in the last place of the largest number, 17.
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(outputs, sums, rtol=1e-5)


@pytest.mark.parametrize("unroll", [1, 2, LAYERS])
def test_recomputing_blocks_saves_memory_however_they_are_unrolled(unroll):
    model_def, params = nnx.split(make_stack(64, 512))
    x = jax.ShapeDtypeStruct((1024, 64), jnp.float32)

    def temporaries(remat):
        def loss(params, x):
            return scan(nnx.merge(model_def, params), residual, x, remat=remat, unroll=unroll)[
                0
            ].sum()

        return (
            jax.jit(jax.grad(loss)).lower(params, x).compile().memory_analysis().temp_size_in_bytes
        )

    assert temporaries("full") < 0.6 * temporaries("none")
