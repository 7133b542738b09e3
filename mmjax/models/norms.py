"""LayerNorm and RMSNorm: statistics in float32, whatever the dtype of the activations."""

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models.config import Norm
from mmjax.typing import Array, Float


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis (arXiv:1607.06450)."""

    def __init__(self, width: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones(width), axes=("norm",))
        self.bias = nnx.Param(jnp.zeros(width), axes=("norm",))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis (arXiv:1910.07467)."""

    def __init__(self, width: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones(width), axes=("norm",))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...]).astype(x.dtype)


def make_norm(kind: Norm, width: int, epsilon: float) -> LayerNorm | RMSNorm:
    return LayerNorm(width, epsilon) if kind == "layer" else RMSNorm(width, epsilon)
