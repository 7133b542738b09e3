"""What each layer of a decoder already predicts, and how far that is from the prediction of the last layer.

Each layer's states go through the model's own final norm and head, the "logit lens". Nothing of size [layers, T, V] ever exists: the head
reads one layer at a time, and of it `POSITIONS` positions. The distance is one number for each layer and sample, a divergence.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from mmjax.models.parameters import ModelDef
from mmjax.typing import Array, Params

Measure = Literal["positions", "vocabulary"]

POSITIONS = 128
"""Positions that the head reads at once: with a vocabulary of 128,256, 66 MB of scores."""
SMALLEST = 1e-6
"""Shares below this count as this much."""
_SHORTEST = 32  # tokens of the shortest program


@dataclasses.dataclass(frozen=True)
class Lens:
    """A decoder seen layer by layer.

    Attributes:
        model_def, params: of a `LanguageModel`.
        measure: what is read; see `read`.
        longest: tokens of the longest sample. Samples are padded to a power of two or to this, so that few programs are compiled.
    """

    model_def: ModelDef
    params: Params
    measure: Measure
    longest: int

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """Numbers [layers, N - 1] float32 of a sample of N tokens, one for each token that is predicted.

        With "positions" they are log-probabilities of the tokens that follow, with "vocabulary" the divergence of a layer's distribution q
        of the next token from that of the last layer p, KL(q || p), in nats; then the last row is 0.
        """
        count = len(tokens)
        row = np.zeros(self.padded(count), np.int32)
        row[:count] = tokens
        return np.asarray(read_padded(self.model_def, self.measure, self.params, row, count))[
            :, : count - 1
        ]

    def padded(self, count: int) -> int:
        """The length to which a sample is padded."""
        longest = math.ceil(self.longest / _SHORTEST) * _SHORTEST
        return min(max(_SHORTEST, 1 << (count - 1).bit_length()), longest)


@jax.jit(static_argnums=(0, 1))
def read_padded(
    model_def: ModelDef, measure: Measure, params: Params, tokens: Array, count: Array
) -> Array:
    """The numbers of a padded sample [T] as [layers, T]. What belongs to padding means nothing."""
    model = model_def.merge(params)
    segments = (jnp.arange(len(tokens)) < count).astype(jnp.int32)
    states = model.hidden_states(tokens[None], segments[None])[:, 0]
    chunk = math.gcd(len(tokens), POSITIONS)
    chunks = rearrange(states, "layers (chunks c) D -> chunks layers c D", c=chunk)
    following = rearrange(jnp.roll(tokens, -1), "(chunks c) -> chunks c", c=chunk)

    def log_probabilities(states: Array) -> Array:
        logits = model.decoder.logits(model.decoder.norm(states[None]))[0]
        return jax.nn.log_softmax(logits, axis=-1)

    def of_chunk(inputs: tuple[Array, Array]) -> Array:
        states, following = inputs
        last = log_probabilities(states[-1])

        def numbers(scores: Array) -> Array:
            """One number [c] for each row of log-probabilities [c, V]."""
            if measure == "vocabulary":
                return jnp.sum(jnp.exp(scores) * (scores - last), axis=-1)
            return jnp.take_along_axis(scores, following[:, None], axis=-1)[:, 0]

        before = jax.lax.map(lambda layer: numbers(log_probabilities(layer)), states[:-1])
        return jnp.concatenate([before, numbers(last)[None]])

    found = jax.lax.map(of_chunk, (chunks, following))
    return rearrange(found, "chunks layers c -> layers (chunks c)")


def divergences(numbers: np.ndarray, measure: Measure) -> np.ndarray:
    """The curve [layers] float64 of a sample, from what `Lens.read` gives; 0 at the last layer."""
    return (
        across_positions(numbers)
        if measure == "positions"
        else numbers.astype(np.float64).mean(axis=1)
    )


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
