"""The knee of a curve over layers: two straight lines that meet, by least squares; and how sure it is.

The fit. The curve y has one number per layer, 0 to L - 1. For every layer k that leaves at least `MIN_LAYERS` layers to each line, k itself
counted to both, the continuous piecewise-linear function

    f(x) = a + b x + c max(x - k, 0)

is fitted to all L points by ordinary least squares (the sum of squared differences, every layer weighted alike). The knee is the k with
the smallest sum among those where the line bends down and then falls, c < 0 and b + c < 0; among sums that differ by less than `TIE` of
the error of one line over all layers, it is the last such k, which replaces the fewest layers. Where none bends down there is no knee, nor
where one line leaves no error.

The cut is k + 1, the first layer of the late phase: layer k is the last one whose state is still on the early line.

How sure. Samples are drawn with replacement, as many as there are, and the knee of the median of each such draw is found the same way.
"""

import dataclasses
from typing import Literal

import numpy as np

MIN_LAYERS = 3
"""Of the shorter line."""
TIE = 1e-9
RESAMPLES, SEED = 200, 0
MIN_SAMPLES = 20
"""Draws from fewer samples say too little."""

Verdict = Literal["high", "moderate", "low"]


@dataclasses.dataclass(frozen=True)
class Knee:
    """The knee of a curve.

    Attributes:
        layer: where the lines meet.
        heights: of the lines at the first layer, at the knee and at the last layer.
        improvement: the share of the squared error of one line over all layers that the two save, 0 to 1.
    """

    layer: int
    heights: tuple[float, float, float]
    improvement: float

    @property
    def cut(self) -> int:
        """The first layer of the late phase."""
        return self.layer + 1


@dataclasses.dataclass(frozen=True)
class Confidence:
    """How far a cut depends on which samples were read.

    Attributes:
        near: share of the resamples whose cut is within one layer of it; a resample without a cut is not.
        interval: between which layers the cuts of 90 % of the resamples that have one lie; None if none has one.
        verdict: "high": near >= 0.8 and improvement >= 0.5; "low": fewer than `MIN_SAMPLES` samples, near < 0.5 or improvement < 0.25; else
            "moderate". The bounds are ours, and choices.
    """

    near: float
    interval: tuple[int, int] | None
    resamples: int
    verdict: Verdict


def find_knees(curves: np.ndarray) -> list[Knee | None]:
    """The knee of each curve [curves, layers], or None."""
    layers = curves.shape[1]
    candidates = range(MIN_LAYERS - 1, layers - MIN_LAYERS + 1)
    if not candidates:
        return [None] * len(curves)
    x = np.arange(layers)

    def fit(*bends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients [terms, curves] and sums of squared differences [curves]."""
        design = np.stack([np.ones(layers), x, *bends], axis=1)
        coefficients = np.linalg.lstsq(design, curves.T, rcond=None)[0]
        return coefficients, ((design @ coefficients - curves.T) ** 2).sum(axis=0)

    single = fit()[1]
    fits = [fit(np.maximum(x - layer, 0)) for layer in candidates]
    knees: list[Knee | None] = []
    for index, curve in enumerate(curves):
        straight = single[index] <= TIE * (curve**2).sum()
        errors: dict[int, float] = {}  # where the curve bends down and then falls
        for layer, (coefficients, squares) in zip(candidates, fits, strict=True):
            _, slope, bend = coefficients[:, index]
            if bend < 0 and slope + bend < 0:
                errors[layer] = squares[index]
        if straight or not errors:
            knees.append(None)
            continue
        bound = min(errors.values()) + TIE * single[index]
        layer = max(layer for layer, error in errors.items() if error <= bound)
        start, slope, bend = fits[layer - candidates[0]][0][:, index]
        heights = (
            float(start),
            float(start + slope * layer),
            float(start + slope * (layers - 1) + bend * (layers - 1 - layer)),
        )
        knees.append(Knee(layer, heights, float(1 - errors[layer] / single[index])))
    return knees


def confidence(curves: np.ndarray, knee: Knee) -> Confidence:
    """How sure a knee of the median of curves [samples, layers] is."""
    drawn = np.random.default_rng(SEED).integers(len(curves), size=(RESAMPLES, len(curves)))
    medians = np.stack([np.median(curves[chosen], axis=0) for chosen in drawn])
    cuts = [found.cut for found in find_knees(medians) if found is not None]
    near = sum(abs(cut - knee.cut) <= 1 for cut in cuts) / RESAMPLES
    interval = None
    if cuts:
        low, high = (
            np.quantile(cuts, 0.05, method="lower"),
            np.quantile(cuts, 0.95, method="higher"),
        )
        interval = (int(low), int(high))
    verdict: Verdict = "moderate"
    if len(curves) < MIN_SAMPLES or near < 0.5 or knee.improvement < 0.25:
        verdict = "low"
    elif near >= 0.8 and knee.improvement >= 0.5:
        verdict = "high"
    return Confidence(near, interval, RESAMPLES, verdict)
