"""The fit finds knees that are there, and says how sure it is."""

import numpy as np
import pytest

from mmjax.trajectory.knee import MIN_LAYERS, MIN_SAMPLES, confidence, find_knees

LAYERS = 32


def bent(
    corner: int, *, layers: int = LAYERS, early: float = -0.02, height: float = 4.0
) -> np.ndarray:
    """Nearly level up to the corner, then straight down to 0 at the last layer."""
    x = np.arange(layers)
    plateau = height + early * np.minimum(x, corner)
    return np.where(
        x <= corner, plateau, plateau[corner] * (layers - 1 - x) / (layers - 1 - corner)
    )


def noisy(curve: np.ndarray, samples: int, size: float, seed: int = 0) -> np.ndarray:
    return curve + np.random.default_rng(seed).normal(size=(samples, len(curve))) * size


@pytest.mark.parametrize("corner", [2, 9, 15, 24, 29])
def test_a_known_knee_is_found(corner):
    curve = bent(corner)
    knee = find_knees(curve[None])[0]
    assert knee.cut == corner + 1
    np.testing.assert_allclose(knee.heights, curve[[0, corner, -1]], atol=1e-9)
    assert knee.improvement == pytest.approx(1)


def test_noise_moves_it_little_and_the_confidence_is_high():
    curves = noisy(bent(15), 100, 1.0)
    knee = find_knees(np.median(curves, axis=0)[None])[0]
    sure = confidence(curves, knee)
    assert abs(knee.cut - 16) <= 1
    assert sure.verdict == "high"
    assert sure.near > 0.8
    assert sure.interval[0] <= 16 <= sure.interval[1] <= sure.interval[0] + 4


@pytest.mark.parametrize("seed", range(8))
def test_of_a_straight_line_the_confidence_is_low(seed):
    curves = noisy(np.linspace(4, 0, LAYERS), 100, 1.0, seed)
    knee = find_knees(np.median(curves, axis=0)[None])[0]
    assert knee is None or confidence(curves, knee).verdict == "low"


def test_few_samples_are_not_trusted():
    curves = noisy(bent(15), MIN_SAMPLES - 1, 0.01)
    knee = find_knees(np.median(curves, axis=0)[None])[0]
    assert confidence(curves, knee).near == 1
    assert confidence(curves, knee).verdict == "low"


@pytest.mark.parametrize(
    "curve",
    [
        np.linspace(3, 0, LAYERS),
        np.zeros(LAYERS),
        np.linspace(1, 0, LAYERS) ** 2,  # bends up everywhere
    ],
)
def test_no_knee(curve):
    assert find_knees(curve[None]) == [None]


def test_each_line_has_its_layers():
    """A drop at the very end, or one at the very beginning, is no phase."""
    assert find_knees(bent(LAYERS - 2)[None])[0].layer == LAYERS - MIN_LAYERS
    assert find_knees(bent(0, early=0)[None] + 1e-3 * np.arange(LAYERS) ** 0.5) != [None]
    assert find_knees(bent(1, layers=2 * MIN_LAYERS - 2)[None]) == [None]
    assert find_knees(bent(2, layers=2 * MIN_LAYERS - 1)[None])[0].cut == MIN_LAYERS


def test_curves_are_fitted_each_for_itself():
    found = find_knees(
        np.stack([bent(9), np.linspace(3, 0, LAYERS), bent(20, height=1e-3, early=0)])
    )
    assert [knee and knee.cut for knee in found] == [10, None, 21]


def test_resamples_without_a_knee_do_not_count_as_near():
    curves = np.concatenate(
        [
            np.repeat(bent(15)[None], 11, axis=0),
            np.repeat(np.linspace(4, 0, LAYERS)[None] ** 2, 10, axis=0),
        ]
    )
    knee = find_knees(np.median(curves, axis=0)[None])[0]
    assert 0.3 < confidence(curves, knee).near < 0.8
