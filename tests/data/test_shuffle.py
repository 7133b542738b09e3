"""The closed-form permutation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.packing.rows import shuffled


@settings(deadline=None)
@given(st.integers(1, 300), st.tuples(st.integers(0, 2**40), st.integers(0, 2**32 - 1)))
def test_it_is_a_permutation(count, key):
    assert sorted(shuffled(index, count, key) for index in range(count)) == list(range(count))


def test_a_large_range_needs_no_table():
    count = 10**15
    values = [shuffled(index, count, (0,)) for index in range(1000)]
    assert len(set(values)) == 1000 and all(0 <= value < count for value in values)
    assert abs(np.mean(values) / count - 0.5) < 0.05  # standard deviation of the mean: 0.009


@pytest.mark.parametrize("count", [5, 64, 1000])
def test_keys_give_unrelated_orders(count):
    """Over many keys, each element comes first about equally often."""
    first = np.bincount(
        [shuffled(0, count, (key, 1)) for key in range(20 * count)], minlength=count
    )
    expected = 20
    assert ((first - expected) ** 2 / expected).sum() < count + 6 * np.sqrt(
        2 * count
    )  # chi squared: mean count - 1, variance twice that
