"""Tokens chosen from scores: the likeliest ones, the right sets, the right frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.inference import sampling
from mmjax.inference.sampling import choose

nucleus = jax.jit(sampling.nucleus)
LOGITS = jnp.array([0.3, -jnp.inf, 2.0, 1.1, 2.0, -1.0])


def smallest_set(weights: np.ndarray, half: int) -> set[int]:
    """By sorting, in whole numbers: of tokens whose weights add up to half / 2 at least."""
    order = np.argsort(-weights, kind="stable")
    enough = int(np.searchsorted(2 * np.cumsum(weights[order]), half)) + 1
    return set(order[:enough].tolist())


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=20, max_size=20).filter(any), st.floats(0, 1))
def test_the_nucleus_is_the_smallest_set_that_is_enough(weights: list[int], share: float):
    # An odd number of halves: no sum of weights is equal to it, so that rounding decides nothing.
    total = sum(weights)
    half = 1 + 2 * min(int(share * total), total - 1)
    kept = nucleus(jnp.array(weights, jnp.float32) / total, half / (2 * total))
    assert set(np.flatnonzero(kept).tolist()) == smallest_set(np.array(weights), half)


@settings(deadline=None)
@given(st.lists(st.floats(-20, 20, width=32), min_size=20, max_size=20), st.floats(0, 1))
def test_what_is_excluded_is_no_likelier_than_what_is_kept(logits: list[float], top_p: float):
    probabilities = jax.nn.softmax(jnp.array(logits, jnp.float32))
    kept = np.asarray(nucleus(probabilities, top_p))
    found = np.asarray(probabilities, np.float64)
    assert kept[found.argmax()]
    assert found[kept].sum() >= top_p - 1e-5
    assert found[kept].sum() - found[kept].min() <= top_p + 1e-5
    if not kept.all() and found[~kept].any():
        assert found[~kept].max() <= found[kept].min()


def test_a_large_vocabulary_has_the_nucleus_that_sorting_finds():
    probabilities = jax.nn.softmax(3 * jax.random.normal(jax.random.key(0), (100_000,)))
    falling = np.sort(np.asarray(probabilities, np.float64))[::-1]
    for top_p in (0.1, 0.5, 0.9, 0.99):
        wanted = int(np.searchsorted(np.cumsum(falling), top_p)) + 1
        assert abs(int(nucleus(probabilities, top_p).sum()) - wanted) <= max(1, 1e-4 * wanted)


@pytest.mark.parametrize(
    ("temperature", "top_p"),
    [(0.0, 1.0), (0.0, 0.5), (1.0, 0.0), (1.0, 1e-6), (5.0, 1e-6), (1e-4, 1.0)],
)
def test_no_chance_is_left_at_the_limits(temperature: float, top_p: float):
    chosen = {
        int(
            choose(
                LOGITS.at[4].set(1.9), jax.random.key(seed), temperature=temperature, top_p=top_p
            )
        )
        for seed in range(20)
    }
    assert chosen == {2}


def test_of_equal_tokens_the_first_is_the_likeliest():
    assert int(choose(LOGITS, jax.random.key(0), temperature=0, top_p=1)) == 2
    assert int(choose(LOGITS, jax.random.key(0), temperature=1, top_p=1e-6)) == 2


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8), (2.0, 0.9)])
def test_frequencies_are_the_probabilities(temperature: float, top_p: float):
    draws = 40_000
    keys = jax.random.split(jax.random.key(3), draws)
    chosen = jax.vmap(lambda key: choose(LOGITS, key, temperature=temperature, top_p=top_p))(keys)
    with np.errstate(all="ignore"):
        expected = np.exp(np.asarray(LOGITS, np.float64) / temperature)
    expected /= expected.sum()
    order = np.argsort(-expected, kind="stable")
    expected[order[int(np.searchsorted(np.cumsum(expected[order]), top_p)) + 1 :]] = 0
    expected /= expected.sum()
    found = np.bincount(chosen, minlength=len(expected)) / draws
    assert (
        np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws)
    ).all()  # five standard deviations


def test_the_same_key_chooses_the_same_token():
    def drawn(seed: int) -> list[int]:
        return jax.vmap(lambda key: choose(LOGITS, key, temperature=1.0, top_p=0.95))(
            jax.random.split(jax.random.key(seed), 30)
        ).tolist()

    assert drawn(0) == drawn(0) != drawn(1)
