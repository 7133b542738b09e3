"""How far a layer's predictions are from those of the last layer: one number per layer and sample."""

import numpy as np

from mmjax.trajectories.lens import Measure

SMALLEST = 1e-6
"""Shares below this count as this much."""


def divergences(numbers: np.ndarray, measure: Measure) -> np.ndarray:
    """The curve [layers] float64 of a sample, from what `Lens.read` gives; 0 at the last layer."""
    return across_positions(numbers) if measure == "positions" else numbers.astype(np.float64).mean(axis=1)


def across_positions(log_probabilities: np.ndarray) -> np.ndarray:
    """The measure of arXiv:2505.22664: a divergence of two distributions over the positions of a text, in nats.

    Of each layer, the probabilities of the tokens that really follow are divided by their sum over the text, so that they say where in the
    text the layer predicts well, and not how well. Shares below `SMALLEST` are raised to it, without dividing again. With q of a layer and
    p of the last one, the divergence is sum q log(q / p); because of the raised shares it may be a little below zero.

    Args:
        log_probabilities: [layers, N - 1], natural logarithms.
    """
    shares = np.asarray(log_probabilities, np.float64)
    shares = np.exp(shares - shares.max(axis=1, keepdims=True))
    shares = np.maximum(shares / shares.sum(axis=1, keepdims=True), SMALLEST)
    return (shares * (np.log(shares) - np.log(shares[-1]))).sum(axis=1)
