"""What surrogate grafting saves, by a closed form that knows the decoder alone. Two recipes, counted by `training.flops`, say it better.

The baseline aligns images with the frozen decoder (a FLOPs for each token and parameter), then trains all of the decoder (b FLOPs), once
over the data each. Grafting (arXiv:2505.22664) does the first on a surrogate of r times the parameters: its translators learn from the same
data and from text beside it (rho tokens for each of the data's), then the encoder from the data. The whole decoder reads a share f of them:

    saving = 1 - (r a (2 + rho) + b f) / (a + b)

It ignores the encoder, the products of attention, and that embeddings cost nothing.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Multipliers:
    """FLOPs for each token and decoder parameter: 2 forward, 2 for the gradient of activations, 2 for that of weights.

    Attributes:
        frozen: of a decoder with something trained before it; it has no gradient of weights.
        trained: of one that is trained itself.
    """

    frozen: float
    trained: float


PLAIN = Multipliers(frozen=4, trained=6)
REMATERIALISED = Multipliers(frozen=6, trained=8)
"""As PLAIN, with whole blocks computed forward once more (`remat="full"`), which `training.flops` does not count."""


def predicted_saving(
    ratio: float, text: float, last: float, multipliers: Multipliers = PLAIN
) -> float:
    """The share of the baseline's FLOPs that grafting does without; below zero where it costs more.

    Args:
        ratio: r, parameters of the surrogate for each one of the whole decoder.
        text: rho, tokens of text without an image for each token of the rows with images.
        last: f, which share of the data the last stage reads.
    """
    a, b = multipliers.frozen, multipliers.trained
    return 1 - (ratio * a * (2 + text) + b * last) / (a + b)


def break_even(text: float, last: float, multipliers: Multipliers = PLAIN) -> float:
    """The ratio r at which nothing is saved: of a smaller surrogate, `predicted_saving` is positive. Above 1, any surrogate saves.

    Arguments as of `predicted_saving`.
    """
    a, b = multipliers.frozen, multipliers.trained
    return (a + b * (1 - last)) / (a * (2 + text))
