"""A sliding window over packed rows, against the distance between tokens."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.kernels.attention import IntervalMask


def rows(
    prefix: int, branches: list[int], padding: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segments, prefixes and positions of a row in which every branch goes on from the prefix."""
    segments, prefixes, positions = [1] * prefix, [0] * prefix, list(range(prefix))
    for number, length in enumerate(branches, 2 if prefix else 1):
        segments += [number] * length
        prefixes += [1 if prefix else 0] * length
        positions += range(prefix, prefix + length)
    return tuple(
        np.array([values + [0] * padding], np.int32) for values in (segments, prefixes, positions)
    )


LONGEST = 6 + 3 * 6
"""The longest rows have no padding, others are padded to them: one program serves all rows of a window."""


@functools.partial(jax.jit, static_argnums=2)
def dense(segments, prefixes, window):
    """What each token sees, without and with a window."""
    whole = IntervalMask.from_segments(segments, prefixes)
    return whole.dense(LONGEST), whole.within(window).dense(LONGEST)


@hypothesis.given(
    prefix=st.integers(0, 6),
    branches=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    window=st.integers(1, 9),
)
@hypothesis.example(prefix=6, branches=[6, 6, 6], window=5)
@hypothesis.settings(deadline=None, max_examples=60)
def test_a_token_sees_itself_and_those_less_than_the_window_before(prefix, branches, window):
    padding = LONGEST - prefix - sum(branches)
    segments, prefixes, positions = rows(prefix, branches, padding)
    whole, seen = map(np.asarray, dense(segments, prefixes, window))
    distance = positions[0][:, None] - positions[0][None]
    wanted = whole[0] & (distance < window) & (distance >= 0)
    np.testing.assert_array_equal(seen[0], wanted)


def test_without_prefixes_and_with_a_cache():
    """Twenty slots are filled, and two tokens are read."""
    mask = IntervalMask(jnp.zeros((1, 2), jnp.int32), jnp.array([[21, 22]])).within(4)
    assert (mask.start.tolist(), mask.end.tolist()) == ([[17, 18]], [[21, 22]])
