"""The fused backward kernel in the interpreter of Mosaic GPU, with stores that add taught to it: against float64, races, what must not be
touched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.kernels import _plgpu as gpu
from mmjax.kernels.attention import IntervalMask
from mmjax.kernels.attention.mosaic_gpu import backward_fused, plan, tuning
from mmjax.kernels.attention.mosaic_gpu.forward import forward
from tests.kernels.mosaic_gpu import exact, interpreter
from tests.kernels.mosaic_gpu.interpreted import WORST, check, run

FUSED = [
    head_dim for head_dim in tuning.HEAD_DIMENSIONS if tuning.tiles(head_dim, masked=True).fused
]


def test_packed_rows_with_a_shared_prefix_and_padding():
    """More tiles of keys than one block owns, so that several add to the same rows."""
    mask = exact.segments([(64, 0), (1, 0), (20, 0), (20, 3), (25, 3), (22, 0), (8, -1)])
    found = check(exact.inputs(160, 160, 2, 1, 64), mask, deterministic=False)
    assert not np.asarray(found["dq"], np.float32)[:, -8:].any(), "a row that sees nothing"


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", FUSED)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2)])
def test_head_dimensions_and_groups(head_dim, heads, kv_heads):
    check(
        exact.inputs(150, 150, heads, kv_heads, head_dim, seed=head_dim),
        exact.segments([(70, 0), (80, 1)]),
        deterministic=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (65, 63), (130, 257), (260, 130)])
def test_lengths(rows, keys):
    check(
        exact.inputs(rows, keys, 1, 1, 64),
        exact.windows(rows, keys, max(keys // 3, 1)),
        deterministic=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 128])
def test_no_mask(head_dim):
    check(exact.inputs(256, 300, 1, 1, head_dim), None, deterministic=False)


@pytest.mark.slow
def test_batch_rows_have_masks_of_their_own():
    mask = exact.segments([(100, 0), (92, 0)], [(30, 0), (60, 1), (50, 1), (52, -1)])
    check(exact.inputs(192, 192, 2, 1, 64, batch=2), mask, deterministic=False)


@pytest.mark.slow
@pytest.mark.parametrize(("softcap", "louder"), [(5.0, 10.0), (50.0, 100.0)])
def test_softcap(softcap, louder):
    arrays = exact.inputs(130, 200, 2, 1, 64, louder=louder)
    check(arrays, exact.windows(130, 200, 90), softcap=softcap, deterministic=False)


@pytest.mark.slow
def test_float16():
    check(
        exact.inputs(100, 100, 1, 1, 64, dtype=jnp.float16), exact.causal(100), deterministic=False
    )


@pytest.mark.slow
def test_zeros_where_nothing_is_seen_at_all():
    nothing = IntervalMask(jnp.zeros((1, 70), jnp.int32), jnp.zeros((1, 70), jnp.int32))
    for found in run(*exact.inputs(70, 70, 1, 1, 64), nothing, deterministic=False):
        assert not np.asarray(found, np.float32).any()


@pytest.mark.slow
@pytest.mark.parametrize("poisoned", [0, 1])
def test_tiles_that_nobody_sees_are_not_computed(poisoned):
    """Two packed texts, each of whole tiles; one is NaN throughout: any tile of the two together would spread it."""
    half = 128
    bad, good = (slice(half * one, half * (one + 1)) for one in (poisoned, 1 - poisoned))
    mask = exact.segments([(half, 0), (half, 0)])
    clean = exact.inputs(2 * half, 2 * half, 1, 1, 64)
    found = run(*(x.at[:, bad].set(jnp.nan) for x in clean), mask, deterministic=False)
    wanted = exact.attention(*clean, mask, 64**-0.5)
    for name, one, other in zip(exact.NAMES, found, wanted, strict=True):
        assert exact.error(one[:, good], other[:, good]) <= WORST[name]
        assert np.isnan(np.asarray(one[:, bad], np.float32)).all(), "the poison works"


@pytest.mark.slow
def test_heads_that_it_has_no_registers_for_get_the_two_kernels():
    arrays = exact.inputs(70, 70, 1, 1, 256)
    one, other = (
        run(*arrays, exact.causal(70), deterministic=deterministic)
        for deterministic in (True, False)
    )
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(np.asarray(first, np.float32), np.asarray(second, np.float32))


def races(head_dim):
    """Whether the fused kernel has races, with more tiles than stages, so that rings and slots go round."""
    q, k, v, dout = exact.inputs(136, 200, 2, 1, head_dim)
    mask = plan.clipped(exact.windows(136, 200, 100), 1, 136, 200)
    sizes = tuning.tiles(head_dim, masked=True)
    watching = interpreter.WATCHING
    out, log_total = forward(q, k, v, mask, head_dim**-0.5, None, sizes.forward, gpu.Interpreter())
    delta = jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), axis=3).swapaxes(1, 2)
    with interpreter.additions(), interpreter.watched_products():
        jax.block_until_ready(
            backward_fused.gradients(
                q, k, v, dout, log_total, delta, mask, head_dim**-0.5, None, sizes.fused, watching
            )
        )
    return gpu.races_found()


@pytest.mark.parametrize(
    "head_dim",
    [64, pytest.param(80, marks=pytest.mark.slow), pytest.param(128, marks=pytest.mark.slow)],
)
def test_no_races(head_dim):
    assert not races(head_dim)
