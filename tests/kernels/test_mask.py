"""Masks made in every way, against loops; what they mean for tiles and keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.kernels.attention import IntervalMask
from mmjax.kernels.attention.mask import FULL, PARTIAL, SKIP, rows_of_keys, tile_classes

jitted_classes = jax.jit(tile_classes, static_argnums=(1, 2, 3))
jitted_rows = jax.jit(rows_of_keys, static_argnums=1)


@st.composite
def masks(draw):
    """Two entries of a batch with any intervals, of few shapes, so that little is compiled."""
    rows, keys, two = (
        draw(st.sampled_from([1, 13])),
        draw(st.sampled_from([1, 16, 21])),
        draw(st.booleans()),
    )
    ends = st.lists(st.integers(0, keys), min_size=4, max_size=4).map(sorted)
    cut = np.array([[draw(ends) for _ in range(rows)] for _ in range(2)], np.int32)
    columns = [jnp.asarray(cut[..., axis]) for axis in (2, 3, 0, 1)]
    return keys, IntervalMask(*columns) if two else IntervalMask(*columns[:2])


@given(masks(), st.sampled_from([(1, 1), (3, 4), (8, 5)]))
@settings(max_examples=60, deadline=None)
def test_classes_of_tiles(case, sizes):
    (keys, mask), (tall, wide) = case, sizes
    seen, classes = np.asarray(mask.dense(keys)), np.asarray(jitted_classes(mask, keys, tall, wide))
    assert classes.shape == (2, -(-seen.shape[1] // tall), -(-keys // wide))
    for b, i, j in np.ndindex(classes.shape):
        tile = seen[b, i * tall : (i + 1) * tall, j * wide : (j + 1) * wide]
        whole = tile.all() and tile.shape[1] == wide
        assert classes[b, i, j] == (FULL if whole else PARTIAL if tile.any() else SKIP)


def test_a_tile_whose_keys_two_intervals_show_twice_is_not_full():
    start, end = jnp.zeros((1, 4), jnp.int32), jnp.full((1, 4), 2, jnp.int32)
    assert tile_classes(IntervalMask(start, end, start, end), 4, 4, 4).tolist() == [[[PARTIAL]]]


@given(masks())
@settings(max_examples=60, deadline=None)
def test_keys_that_are_seen(case):
    keys, mask = case
    seen = np.asarray(mask.dense(keys))
    np.testing.assert_array_equal(mask.is_seen(keys), seen.any(axis=1))
    np.testing.assert_array_equal(mask.sees_something(keys), seen.any(axis=2))


@given(masks())
@settings(max_examples=60, deadline=None)
def test_rows_that_see_a_key(case):
    keys, mask = case
    seen = np.asarray(mask.dense(keys))
    first, last = map(np.asarray, jitted_rows(mask, keys))
    for b, j in np.ndindex(first.shape):
        rows = np.flatnonzero(seen[b, :, j])
        assert (first[b, j], last[b, j]) == ((rows[0], rows[-1] + 1) if len(rows) else (0, 0))


def test_a_key_of_packed_segments_is_seen_by_one_interval_of_rows():
    segments = jnp.asarray([[1, 1, 1, 2, 2, 3, 3, 4, 4, 4, 0]])
    prefixes = jnp.asarray([[0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]])
    mask = IntervalMask.from_segments(segments, prefixes)
    first, last = rows_of_keys(mask, 11)
    count = np.asarray(mask.dense(11)).sum(axis=1)
    inside = np.asarray(last - first)
    # Of the third key on, all rows in between see it; the first two are seen by all rows up to the end of their questions, too.
    np.testing.assert_array_equal(count, inside)


def test_everything_and_causal():
    assert IntervalMask.full(2, 3, 5).dense(5).all() and IntervalMask.full(2, 3, 5).form == "full"
    np.testing.assert_array_equal(IntervalMask.causal(1, 4).dense(4)[0], np.tri(4, dtype=bool))
    np.testing.assert_array_equal(
        IntervalMask.causal(1, 2, 4).dense(4)[0], np.tri(4, dtype=bool)[2:]
    )
    assert (
        IntervalMask.causal(1, 4).form == "causal"
        and IntervalMask.causal(1, 2, 4).form == "intervals"
    )


def test_blocks_see_each_other_in_both_directions():
    segments, blocks = np.array([[1, 1, 1, 1, 2, 2, 2, 0]]), np.array([[0, 5, 5, 0, 6, 6, 0, 0]])
    mask = IntervalMask.from_segments(jnp.asarray(segments), blocks=jnp.asarray(blocks))
    wanted = np.zeros((8, 8), bool)
    for i, j in np.ndindex(8, 8):
        same = segments[0, i] == segments[0, j] and segments[0, i] > 0
        wanted[i, j] = same and (j <= i or (blocks[0, i] == blocks[0, j] > 0))
    np.testing.assert_array_equal(mask.dense(8)[0], wanted)


def test_texts_see_their_last_image():
    mask = IntervalMask.from_media(jnp.asarray([[0, 1, 1, 3]]), tokens=2)
    wanted = np.zeros((4, 6), bool)
    wanted[1:3, 0:2] = wanted[3, 4:6] = True
    np.testing.assert_array_equal(mask.dense(6)[0], wanted)


def test_windows():
    mask = IntervalMask.from_windows(2, windows=3, rows=2, keys=4)
    np.testing.assert_array_equal(
        mask.dense(12)[1], np.kron(np.eye(3, dtype=bool), np.ones((2, 4), bool))
    )


@pytest.mark.parametrize("prefixes", [None, np.zeros((1, 5), np.int32)])
def test_only_packed_segments_are_known_as_such(prefixes):
    segments = jnp.asarray([[1, 1, 2, 2, 0]])
    mask = IntervalMask.from_segments(segments, prefixes)
    assert mask.form == ("segments" if prefixes is None else "intervals")
    assert mask.within(1).form == "intervals"
    np.testing.assert_array_equal(mask.sees_something(5), [[True, True, True, True, False]])
