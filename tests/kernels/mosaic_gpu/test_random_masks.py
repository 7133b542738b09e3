"""The interpreted kernels with any masks of two intervals, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.kernels import _plgpu as gpu
from mmjax.kernels.attention import IntervalMask
from mmjax.kernels.attention.mosaic_gpu import attention
from tests.kernels.mosaic_gpu import exact, interpreter
from tests.kernels.mosaic_gpu.interpreted import WORST

ROWS, KEYS, HEAD = 150, 270, 64

CUTS = st.lists(st.integers(0, KEYS), min_size=4, max_size=4).map(sorted)
RUNS = st.lists(st.tuples(st.integers(1, 80), CUTS), min_size=1, max_size=8)
"""How many rows follow each other that see the same two intervals; the last ones go on to the end."""


@functools.cache
def compiled(deterministic):
    @jax.jit
    def both(arrays, mask):
        q, k, v, dout = arrays
        options = {"deterministic": deterministic, "interpreter": gpu.Interpreter()}
        out, back = jax.vjp(lambda *x: attention(*x, mask, HEAD**-0.5, None, **options), q, k, v)
        return out, *back(dout)

    return both


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [True, False])
@given(runs=RUNS)
@settings(max_examples=8, deadline=None)
def test_any_two_intervals(deterministic, runs):
    cuts = np.array([cut for length, cut in runs for _ in range(length)][:ROWS])
    cuts = np.pad(cuts, ((0, ROWS - len(cuts)), (0, 0)), mode="edge")
    mask = IntervalMask(*(jnp.asarray(cuts[None, :, column], jnp.int32) for column in (2, 3, 0, 1)))
    arrays = exact.inputs(ROWS, KEYS, 2, 1, HEAD)
    with interpreter.additions():
        found = jax.block_until_ready(compiled(deterministic)(arrays, mask))
    for name, one, other in zip(
        exact.NAMES, found, exact.attention(*arrays, mask, HEAD**-0.5), strict=True
    ):
        assert (
            exact.error(one, other) <= WORST[name]
            if other.any()
            else not np.asarray(one, np.float32).any()
        ), name
