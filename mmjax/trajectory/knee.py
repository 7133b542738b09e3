"""Where a curve over layers bends down: two straight lines that meet, by least squares; and how sure that is.

The fit. The curve y has one number per layer, 0 to L - 1. For every layer k that leaves at least `SHORTEST` layers to each line, k itself
counted to both, the continuous piecewise-linear function

    f(x) = a + b x + c max(x - k, 0)

is fitted to all L points by ordinary least squares (the sum of squared differences, every layer weighted alike). The corner is the k with
the smallest sum among those where the line bends down and then falls, c < 0 and b + c < 0; among sums that differ by less than `TIE` of the
error of one line over all layers, it is the last such k, which replaces the fewest layers. Where none bends down there is no corner, nor
where one line leaves no error.

The cut is k + 1, the first layer of the late phase: layer k is the last one whose state is still on the early line.

How sure. Samples are drawn with replacement, as many as there are, and the corner of the median of each such draw is found the same way.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

SHORTEST = 3
"""Layers of the shorter line at least."""
TIE = 1e-9
RESAMPLES, SEED = 200, 0
FEWEST = 20
"""Samples below which draws from them say too little."""

Verdict = Literal["high", "moderate", "low"]


@dataclasses.dataclass(frozen=True)
class Knee:
    """The corner of a curve.

    Attributes:
        corner: the layer where the lines meet.
        heights: of the lines at the first layer, at the corner and at the last layer.
        improvement: the share of the squared error of one line over all layers that the two save, 0 to 1.
    """

    corner: int
    heights: tuple[float, float, float]
    improvement: float

    @property
    def cut(self) -> int:
        """The first layer of the late phase."""
        return self.corner + 1


@dataclasses.dataclass(frozen=True)
class Confidence:
    """How far a cut depends on which samples were read.

    Attributes:
        near: share of the resamples whose cut is within one layer of it; a resample without a cut is not.
        interval: between which layers the cuts of 90 % of the resamples that have one lie; None if none has one.
        verdict: "high": near >= 0.8 and improvement >= 0.5; "low": fewer than `FEWEST` samples, near < 0.5 or improvement < 0.25; else
            "moderate". The bounds are ours, and choices.
    """

    near: float
    interval: tuple[int, int] | None
    resamples: int
    verdict: Verdict


def find_knees(curves: np.ndarray) -> list[Knee | None]:
    """The corner of each curve [curves, layers], or None."""
    layers = curves.shape[1]
    corners = range(SHORTEST - 1, layers - SHORTEST + 1)
    if not corners:
        return [None] * len(curves)
    single = _fit(curves, np.stack([np.ones(layers), np.arange(layers)], axis=1))[1]
    fits = [_fit(curves, _design(layers, corner)) for corner in corners]
    return [
        _best(
            corners,
            [fit[:, index] for fit, _ in fits],
            [errors[index] for _, errors in fits],
            single[index],
            curves[index],
        )
        for index in range(len(curves))
    ]


def _design(layers: int, corner: int) -> np.ndarray:
    x = np.arange(layers)
    return np.stack([np.ones(layers), x, np.maximum(x - corner, 0)], axis=1)


def _fit(curves: np.ndarray, design: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [terms, curves] and sums of squared differences [curves]."""
    coefficients = np.linalg.lstsq(design, curves.T, rcond=None)[0]
    return coefficients, ((design @ coefficients - curves.T) ** 2).sum(axis=0)


def _best(
    corners: Sequence[int],
    fits: Sequence[np.ndarray],
    errors: Sequence[float],
    single: float,
    curve: np.ndarray,
) -> Knee | None:
    if single <= TIE * (curve**2).sum():
        return None  # a straight line
    falling = [
        index for index, (_, slope, bend) in enumerate(fits) if bend < 0 and slope + bend < 0
    ]
    if not falling:
        return None
    least = min(errors[index] for index in falling)
    chosen = max(index for index in falling if errors[index] <= least + TIE * single)
    (start, slope, bend), corner, last = fits[chosen], corners[chosen], len(curve) - 1
    heights = (
        float(start),
        float(start + slope * corner),
        float(start + slope * last + bend * (last - corner)),
    )
    return Knee(corner, heights, float(1 - errors[chosen] / single))


def confidence(curves: np.ndarray, knee: Knee) -> Confidence:
    """How sure a knee of the median of curves [samples, layers] is."""
    drawn = np.random.default_rng(SEED).integers(len(curves), size=(RESAMPLES, len(curves)))
    medians = np.stack([np.median(curves[chosen], axis=0) for chosen in drawn])
    cuts = [found.cut for found in find_knees(medians) if found is not None]
    near = sum(abs(cut - knee.cut) <= 1 for cut in cuts) / RESAMPLES
    interval = (
        (
            int(np.quantile(cuts, 0.05, method="lower")),
            int(np.quantile(cuts, 0.95, method="higher")),
        )
        if cuts
        else None
    )
    return Confidence(near, interval, RESAMPLES, _verdict(len(curves), near, knee.improvement))


def _verdict(samples: int, near: float, improvement: float) -> Verdict:
    if samples < FEWEST or near < 0.5 or improvement < 0.25:
        return "low"
    return "high" if near >= 0.8 and improvement >= 0.5 else "moderate"
