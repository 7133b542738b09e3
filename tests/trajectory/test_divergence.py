"""The two measures, on numbers that can be followed by hand."""

import math

import numpy as np
import pytest

from mmjax.trajectory.lens import SMALLEST, across_positions, divergences


def test_three_tokens_by_hand():
    """Shares of the layer: 1/4, 1/4, 1/2; of the last one: 1/2, 1/4, 1/4. So 1/4 log(1/2) + 0 + 1/2 log 2 = 1/4 log 2."""
    found = across_positions(np.log([[0.1, 0.1, 0.2], [0.3, 0.15, 0.15]]))
    np.testing.assert_allclose(found, [math.log(2) / 4, 0], rtol=1e-12)
    assert found[1] == 0


def test_small_shares_are_raised_and_not_divided_again():
    """Shares of the last layer: 1 - 1e-9 and 1e-9, which counts as 1e-6."""
    found = across_positions(np.log([[0.5, 0.5], [0.9, 0.9e-9]]))
    np.testing.assert_allclose(
        found[0], 0.5 * math.log(0.5) + 0.5 * math.log(0.5 / SMALLEST), rtol=1e-6
    )
    found = across_positions(np.log([[0.9, 0.9e-9], [0.5, 0.5]]))
    np.testing.assert_allclose(found[0], math.log(2) + SMALLEST * math.log(2 * SMALLEST), rtol=1e-6)


def test_the_scale_of_a_layer_does_not_matter():
    numbers = np.log(np.random.default_rng(0).uniform(1e-3, 1, (4, 9)))
    scaled = numbers + np.array([[-300.0], [0.5], [2.0], [-7.0]])
    np.testing.assert_allclose(
        across_positions(scaled), across_positions(numbers), rtol=1e-9, atol=1e-12
    )


def test_probabilities_far_below_what_floats_hold():
    found = across_positions(np.array([[-2000.0, -2000.0 + math.log(3)], [-1.0, -1.0]], np.float32))
    np.testing.assert_allclose(found[0], 0.25 * math.log(0.5) + 0.75 * math.log(1.5), rtol=1e-3)


@pytest.mark.parametrize("measure", ["positions", "vocabulary"])
def test_the_last_layer_is_zero(measure):
    numbers = np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32)
    if measure == "vocabulary":
        numbers[-1] = 0
    found = divergences(numbers, measure)
    assert found[-1] == 0
    assert found.shape == (5,)


def test_over_the_vocabulary_positions_weigh_alike():
    np.testing.assert_allclose(
        divergences(np.array([[1.0, 2.0, 6.0], [0, 0, 0]], np.float32), "vocabulary"), [3, 0]
    )
