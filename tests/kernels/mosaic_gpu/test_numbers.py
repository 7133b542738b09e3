"""The Hopper kernels in the interpreter of Mosaic GPU against float64: results, gradients, races, what must not be touched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.kernels import _plgpu as gpu
from mmjax.kernels.attention import IntervalMask
from mmjax.kernels.attention.mosaic_gpu import attention, plan, tuning
from mmjax.kernels.attention.mosaic_gpu.backward_keys import gradient_of_keys
from mmjax.kernels.attention.mosaic_gpu.backward_queries import gradient_of_queries
from mmjax.kernels.attention.mosaic_gpu.forward import forward
from tests.kernels.mosaic_gpu import exact, interpreter
from tests.kernels.mosaic_gpu.interpreted import WORST, check, run


def test_packed_rows_with_a_shared_prefix_and_padding():
    """Segments end on and off the edges of tiles, one is of length one, two share a prefix, grouped heads."""
    mask = exact.segments([(64, 0), (1, 0), (20, 0), (20, 3), (25, 3), (22, 0), (8, -1)])
    found = check(exact.inputs(160, 160, 2, 1, 64), mask)
    assert not np.asarray(found["out"], np.float32)[:, -8:].any(), "a row that sees nothing is zero"
    assert not np.asarray(found["dq"], np.float32)[:, -8:].any()


@pytest.mark.slow
def test_no_mask_and_lengths_that_no_tile_divides():
    check(exact.inputs(77, 203, 1, 1, 128), None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head_dim", "heads", "kv_heads"), [(80, 1, 1), (96, 4, 1), (128, 8, 1), (256, 4, 2)]
)
def test_head_dimensions_and_groups(head_dim, heads, kv_heads):
    check(
        exact.inputs(150, 150, heads, kv_heads, head_dim, seed=head_dim),
        exact.segments([(70, 0), (80, 1)]),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (65, 63), (130, 257)])
def test_lengths(rows, keys):
    check(exact.inputs(rows, keys, 1, 1, 64), exact.windows(rows, keys, max(keys // 3, 1)))


@pytest.mark.slow
def test_whole_tiles_without_a_mask():
    check(exact.inputs(256, 128, 1, 1, 64), None)


@pytest.mark.slow
@pytest.mark.parametrize("edges", [(64, 64, 128), (63, 65, 1, 127)])
def test_edges_of_segments(edges):
    check(exact.inputs(256, 256, 1, 1, 64), exact.segments([(length, 0) for length in edges]))


@pytest.mark.slow
def test_batch_rows_have_masks_of_their_own():
    mask = exact.segments([(100, 0), (92, 0)], [(30, 0), (60, 1), (50, 1), (52, -1)])
    check(exact.inputs(192, 192, 2, 1, 64, batch=2), mask)


@pytest.mark.slow
def test_loud_scores():
    check(exact.inputs(130, 130, 1, 1, 64, louder=30.0), exact.causal(130))


@pytest.mark.slow
@pytest.mark.parametrize(("softcap", "louder"), [(5.0, 10.0), (50.0, 100.0)])
def test_softcap(softcap, louder):
    check(
        exact.inputs(130, 200, 2, 1, 64, louder=louder),
        exact.windows(130, 200, 90),
        softcap=softcap,
    )


@pytest.mark.slow
def test_float16():
    check(exact.inputs(100, 100, 1, 1, 64, dtype=jnp.float16), exact.causal(100))


@pytest.mark.slow
def test_rows_of_nothing_but_zeros_where_nothing_is_seen_at_all():
    nothing = IntervalMask(jnp.zeros((1, 70), jnp.int32), jnp.zeros((1, 70), jnp.int32))
    for found in run(*exact.inputs(70, 70, 1, 1, 64), nothing):
        assert not np.asarray(found, np.float32).any()


@pytest.mark.slow
def test_intervals_that_reach_behind_the_keys_end_with_them():
    arrays = exact.inputs(70, 70, 1, 1, 64)
    behind = IntervalMask(jnp.full((1, 70), -5, jnp.int32), jnp.full((1, 70), 1000, jnp.int32))
    for found, wanted in zip(run(*arrays, behind), run(*arrays, None), strict=True):
        np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(wanted, np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("poisoned", [0, 1])
def test_tiles_that_nobody_sees_are_not_computed(poisoned):
    """Two packed texts, each of whole tiles of every kernel; one is NaN throughout: any tile of the two together would spread it."""
    half = 128
    mask = exact.segments([(half, 0), (half, 0)])
    clean = exact.inputs(2 * half, 2 * half, 1, 1, 64)
    bad = slice(0, half) if poisoned == 0 else slice(half, None)
    good = slice(half, None) if poisoned == 0 else slice(0, half)
    found = run(*(x.at[:, bad].set(jnp.nan) for x in clean), mask)
    wanted = exact.attention(*clean, mask, 64**-0.5)
    for name, one, other in zip(exact.NAMES, found, wanted, strict=True):
        assert exact.error(one[:, good], other[:, good]) <= WORST[name]
        assert np.isnan(np.asarray(one[:, bad], np.float32)).all(), "the poison works"


def test_as_many_tiles_are_visited_as_the_mask_needs():
    mask = exact.segments([(130, 0), (60, 1), (70, 1), (100, 0), (24, -1)])
    rows, keys = 128, 64
    dense = np.zeros((384, 384), bool)
    dense[:, :] = np.asarray(mask.dense(384))[0]
    tiles = dense.reshape(3, rows, 6, keys).swapaxes(1, 2)
    needed, full = tiles.any(axis=(2, 3)), tiles.all(axis=(2, 3))
    for visits, needed_by_line, full_by_line in (
        (plan.visits_of_rows(mask, 384, rows, keys), needed, full),
        (plan.visits_of_keys(mask, 384, rows, keys), needed.T, full.T),
    ):
        for line, (masked, visited) in enumerate(np.asarray(visits.counts)[0]):
            order = np.asarray(visits.order)[0, line]
            assert set(order[:masked]) == set(
                np.flatnonzero(needed_by_line[line] & ~full_by_line[line])
            )
            assert set(order[masked:visited]) == set(np.flatnonzero(full_by_line[line]))


@pytest.mark.slow
def test_the_same_bits_twice_in_whatever_order_blocks_run():
    """Of the two deterministic kernels. The fused one shows that the test can tell: dq depends on which block adds first."""
    arrays = exact.inputs(130, 650, 2, 1, 64, dtype=jnp.float16)
    mask = exact.windows(130, 650, 600)

    def differing(deterministic):
        first = run(*arrays, mask, deterministic=deterministic)
        with interpreter.last_blocks_first():
            second = run(*arrays, mask, deterministic=deterministic)
        return [
            name
            for name, one, other in zip(exact.NAMES, first, second, strict=True)
            if (one != other).any()
        ]

    assert differing(deterministic=True) == []
    assert differing(deterministic=False) == ["dq"]


@pytest.mark.parametrize(
    "head_dim",
    [64, pytest.param(128, marks=pytest.mark.slow), pytest.param(256, marks=pytest.mark.slow)],
)
def test_no_races(head_dim):
    """More tiles than stages, so that the ring goes round."""
    q, k, v, dout = exact.inputs(136, 200, 2, 1, head_dim)
    mask = plan.clipped(exact.windows(136, 200, 100), 1, 136, 200)
    sizes = tuning.tiles(head_dim, masked=True)
    small = tuning.Tiles(
        *(size and size._replace(stages=2, keys=min(size.keys, 64)) for size in sizes)
    )
    watching = interpreter.WATCHING
    with interpreter.watched_products():
        out, log_total = jax.block_until_ready(
            forward(q, k, v, mask, head_dim**-0.5, None, small.forward, watching)
        )
        assert not gpu.races_found()
        delta = jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), axis=3).swapaxes(1, 2)
        arguments = q, k, v, dout, log_total, delta, mask, head_dim**-0.5, None
        jax.block_until_ready(gradient_of_queries(*arguments, small.queries, watching))
        assert not gpu.races_found()
        jax.block_until_ready(gradient_of_keys(*arguments, small.keys, watching))
        assert not gpu.races_found()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dtype": jnp.float32}, "bfloat16"),
        ({"head_dim": 72}, "head dimension must be one of 64"),
        ({"heads": 3, "kv_heads": 2}, "cannot share"),
        ({"keys": 0}, "empty"),
    ],
)
def test_calls_that_cannot_be_served_are_refused_in_words(change, sentence):
    shape = {"rows": 64, "keys": 64, "heads": 2, "kv_heads": 1, "head_dim": 64} | change
    q, k, v, _ = exact.inputs(**shape)
    with pytest.raises(ValueError, match=sentence):
        attention(q, k, v, None, 1.0, None)


@pytest.mark.parametrize(
    ("scale", "softcap", "sentence"),
    [(0.0, None, "scale"), (-1.0, None, "scale"), (1.0, 0.0, "softcap")],
)
def test_scales_and_softcaps_are_positive(scale, softcap, sentence):
    q, k, v, _ = exact.inputs(64, 64, 1, 1, 64)
    with pytest.raises(ValueError, match=sentence):
        attention(q, k, v, None, scale, softcap)


def test_a_mask_of_other_rows_is_refused():
    q, k, v, _ = exact.inputs(64, 64, 1, 1, 64)
    with pytest.raises(ValueError, match="mask has rows"):
        attention(q, k, v, exact.causal(32), 1.0, None)
