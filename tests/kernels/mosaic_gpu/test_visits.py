"""What the interpreted kernels really fetch and multiply: the tiles that a dense mask needs, each once, and nothing else."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.kernels import _plgpu as gpu
from mmjax.kernels.attention.mosaic_gpu import backward_fused, plan, tuning
from mmjax.kernels.attention.mosaic_gpu.backward_keys import gradient_of_keys
from mmjax.kernels.attention.mosaic_gpu.backward_queries import gradient_of_queries
from mmjax.kernels.attention.mosaic_gpu.block import COMPUTING
from mmjax.kernels.attention.mosaic_gpu.forward import forward
from tests.kernels.mosaic_gpu import exact, interpreter

LENGTH, HEADS = 320, 2
TILE = tuning.Tile(64, 64, 2)
OWNED = COMPUTING * 64
ROWS, COLUMNS = "rows", "keys"

# What a block owns, and products of matrices per tile of scores: 2 + 3 + 4, or 2 + 5.
KERNELS = {"forward": (ROWS, 2), "queries": (ROWS, 3), "keys": (COLUMNS, 4), "fused": (COLUMNS, 5)}


def needed(mask, owner):
    """For each line of what is owned, the tiles of what is walked along that hold anything that is seen, from the mask of all scores."""
    dense = np.asarray(mask.dense(LENGTH))[0]
    dense = np.pad(dense if owner == ROWS else dense.T, ((0, -LENGTH % OWNED), (0, 0)))
    return dense.reshape(-1, OWNED, LENGTH // 64, 64).any(axis=(1, 3))


def recorded(kernel, q, k, v, dout, mask):
    mask = plan.clipped(mask, 1, LENGTH, LENGTH)
    numbers = jnp.zeros((1, HEADS, LENGTH), jnp.float32)
    with interpreter.additions(), interpreter.recorded() as record:
        if kernel == "forward":
            jax.block_until_ready(forward(q, k, v, mask, 0.125, None, TILE, gpu.Interpreter()))
        else:
            gradient = {
                "queries": gradient_of_queries,
                "keys": gradient_of_keys,
                "fused": backward_fused.gradients,
            }[kernel]
            jax.block_until_ready(
                gradient(
                    q, k, v, dout, numbers, numbers, mask, 0.125, None, TILE, gpu.Interpreter()
                )
            )
    return record


def fetched(record, shape):
    """How often each tile of arrays of a shape was fetched: {block: {(head, first row): times}}."""
    found = collections.defaultdict(collections.Counter)
    for fetch in record.fetches:
        if fetch.shape == shape:
            _, rows, head, _ = fetch.place
            found[fetch.block][head, rows.start] += 1
    return found


@pytest.mark.parametrize(
    "kernel",
    [
        pytest.param("forward", marks=pytest.mark.slow),
        pytest.param("queries", marks=pytest.mark.slow),
        pytest.param("keys", marks=pytest.mark.slow),
        "fused",
    ],
)
def test_as_many_tiles_are_fetched_and_multiplied_as_the_mask_needs(kernel):
    """Packed segments with a shared prefix, some of which begin within tiles; grouped heads, which tell queries and keys apart."""
    mask = exact.segments([(130, 0), (60, 1), (30, 1), (76, 0), (24, -1)])
    q, k, v, dout = exact.inputs(LENGTH, LENGTH, HEADS, 1, 64)
    owner, products = KERNELS[kernel]
    record = recorded(kernel, q, k, v, dout, mask)
    tiles = needed(mask, owner)
    assert 0 < tiles.sum() < tiles.size, "there is something to leave out"
    found = fetched(record, k.shape if owner == ROWS else q.shape)
    for line, wanted in enumerate(tiles):
        for head in range(HEADS if owner == ROWS else 1):
            # Blocks that own rows begin with the last ones. Those that own keys see to all query heads of their own.
            block = (head, len(tiles) - 1 - line if owner == ROWS else line, 0)
            heads = [0] if owner == ROWS else range(HEADS)
            assert found[block] == {
                (one, 64 * tile): 2 for one in heads for tile in np.flatnonzero(wanted)
            }, "both arrays, once"
            assert record.products.get(block, 0) == COMPUTING * products * len(heads) * wanted.sum()
