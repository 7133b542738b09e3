"""Learned vectors around the visual tokens of a picture."""

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.typing import Array, Float


class Boundaries(nnx.Module):
    """Two learned vectors around the visual tokens of every picture, normal with deviation D ** -0.5 (arXiv:2505.22664)."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        start, end = (jax.random.normal(rngs.params(), (width,)) * width**-0.5 for _ in range(2))
        self.start, self.end = nnx.Param(start, axes=("norm",)), nnx.Param(end, axes=("norm",))

    def __call__(self, tokens: Float[Array, "B L D"]) -> Float[Array, "B L+2 D"]:
        first, last = (
            jnp.broadcast_to(vector[...].astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[2])) for vector in (self.start, self.end)
        )
        return jnp.concatenate([first, tokens, last], axis=1)
