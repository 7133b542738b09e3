"""The order in which sources are read."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.packing.packing import MAX_PERIOD, Mixture
from mmjax.errors import InputError

WEIGHTS = st.lists(st.integers(1, 50), min_size=1, max_size=6)


def sources(mixture: Mixture, count: int) -> np.ndarray:
    return np.array([mixture.locate(index)[0] for index in range(count)])


def deviations(mixture: Mixture, window: int) -> np.ndarray:
    """[sources, windows] count in each window less its share."""
    order = sources(mixture, 2 * mixture.period + 2 * window)
    running = np.array(
        [np.concatenate([[0], np.cumsum(order == source)]) for source in range(len(mixture.counts))]
    )
    return running[:, window:] - running[:, :-window] - window * np.array(mixture.shares)[:, None]


@settings(deadline=None, max_examples=40)
@given(WEIGHTS, st.integers(1, 130))
def test_the_ratio_holds_in_any_window(weights, window):
    bound = 1 if len(weights) <= 2 else 2
    assert np.abs(deviations(Mixture(weights), window)).max() <= bound + 1e-9


@settings(deadline=None, max_examples=40)
@given(WEIGHTS.filter(lambda weights: len(weights) > 1))
def test_no_source_is_ever_further_from_its_share_than_tijdemans_bound(weights):
    mixture = Mixture(weights)
    order = sources(mixture, mixture.period)
    for source, share in enumerate(mixture.shares):
        behind = np.arange(1, len(order) + 1) * share - np.cumsum(order == source)
        assert np.abs(behind).max() <= 1 - 1 / (2 * len(weights) - 2) + 1e-9


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 97), min_size=1, max_size=4).filter(lambda weights: sum(weights) < 100)
)
def test_whole_percents_are_exact_in_any_hundred_rows(percents):
    mixture = Mixture([percent / 100 for percent in [*percents, 100 - sum(percents)]])
    assert np.abs(deviations(mixture, 100)).max() < 1e-9


def test_five_uneven_sources_stay_within_one_in_any_hundred_rows():
    """The mixture of a paper-like recipe: 45 / 45 / 10 would be exact; these shares have no short period."""
    mixture = Mixture([0.4537, 0.3211, 0.1303, 0.0649, 0.03])
    assert mixture.period == MAX_PERIOD
    assert np.abs(deviations(mixture, 100)).max() <= 1.5


@settings(deadline=None, max_examples=40)
@given(WEIGHTS)
def test_each_source_is_read_in_order_without_gaps(weights):
    mixture = Mixture(weights)
    read: Counter[int] = Counter()
    for index in range(3 * mixture.period):
        source, place = mixture.locate(index)
        assert place == read[source]
        read[source] += 1


def test_only_the_ratio_of_weights_counts():
    orders = [
        sources(Mixture(weights), 50).tolist()
        for weights in ([3, 1], [0.75, 0.25], [0.3, 0.1], [300, 100])
    ]
    assert all(order == orders[0] for order in orders)
    assert Mixture([0.3, 0.1]).counts == (3, 1)


def test_an_odd_ratio_is_kept_to_a_ten_thousandth():
    mixture = Mixture([np.pi, np.e, 1])
    assert mixture.shares == pytest.approx(
        np.array([np.pi, np.e, 1]) / (np.pi + np.e + 1), abs=1 / MAX_PERIOD
    )


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 1e-6])
def test_a_weight_that_cannot_be_kept_is_refused(weight):
    with pytest.raises(InputError, match="'rare'"):
        Mixture([1.0, weight], ["common", "rare"])
