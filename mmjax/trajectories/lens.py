"""What each layer of a decoder already predicts: its states through the model's own final norm and head, the "logit lens".

Nothing of size [layers, T, V] ever exists: the head reads one layer at a time, and of it `POSITIONS` positions.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.parameters import Structure
from mmjax.typing import Array, Params

Measure = Literal["positions", "vocabulary"]

POSITIONS = 128
"""Positions that the head reads at once: with a vocabulary of 128,256, 66 MB of scores."""
_SHORTEST = 32  # tokens of the shortest program


@dataclasses.dataclass(frozen=True)
class Lens:
    """A decoder seen layer by layer.

    Attributes:
        structure, params: of a `LanguageModel`.
        measure: what is read; see `divergence`.
        longest: tokens of the longest sample. Samples are padded to a power of two or to this, so that few programs are compiled.
    """

    structure: Structure
    params: Params
    measure: Measure
    longest: int

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """Numbers [layers, N - 1] float32 of a sample of N tokens, in the order of `layers`, one for each token that is predicted.

        With "positions" they are log-probabilities of the tokens that follow, with "vocabulary" the divergence of a layer's distribution q
        of the next token from that of the last layer p, KL(q || p), in nats; then the last row is 0.
        """
        count = len(tokens)
        row = np.zeros(self._padded(count), np.int32)
        row[:count] = tokens
        return np.asarray(_read(self.structure, self.measure, self.params, row, count))[:, : count - 1]

    def _padded(self, count: int) -> int:
        longest = math.ceil(self.longest / _SHORTEST) * _SHORTEST
        return min(max(_SHORTEST, 1 << (count - 1).bit_length()), longest)


@jax.jit(static_argnums=(0, 1))
def _read(structure: Structure, measure: Measure, params: Params, tokens: Array, count: Array) -> Array:
    """The numbers of a padded sample [T] as [layers, T]. What belongs to padding means nothing."""
    model = structure.merge(params)
    segments = (jnp.arange(len(tokens)) < count).astype(jnp.int32)
    states = model.hidden_states(tokens[None], segments[None])[:, 0]
    chunk = math.gcd(len(tokens), POSITIONS)
    chunks = jnp.moveaxis(states.reshape(len(states), -1, chunk, states.shape[-1]), 1, 0)
    following = jnp.roll(tokens, -1).reshape(-1, chunk)

    def scores(states: Array) -> Array:
        return jax.nn.log_softmax(model.decoder.logits(model.decoder.norm(states[None]))[0], axis=-1)

    def of_chunk(inputs: tuple[Array, Array]) -> Array:
        states, following = inputs
        last = scores(states[-1])

        def of_layer(states: Array) -> Array:
            return _numbers(measure, scores(states), last, following)

        before = jax.lax.map(of_layer, states[:-1])
        return jnp.concatenate([before, _numbers(measure, last, last, following)[None]])

    return jnp.moveaxis(jax.lax.map(of_chunk, (chunks, following)), 0, 1).reshape(len(states), -1)


def _numbers(measure: Measure, scores: Array, last: Array, following: Array) -> Array:
    """One number [c] for each row of log-probabilities [c, V]."""
    if measure == "vocabulary":
        return jnp.sum(jnp.exp(scores) * (scores - last), axis=-1)
    return jnp.take_along_axis(scores, following[:, None], axis=-1)[:, 0]
