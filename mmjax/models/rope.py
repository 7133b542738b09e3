"""Rotary positions (arXiv:2104.09864), rotating the two halves of a head against each other, with Llama 3.1's frequency scaling."""

import math

import jax.numpy as jnp
import numpy as np

from mmjax.models.config import RopeScaling
from mmjax.typing import AnyArray, Array, Float, Int


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """[H / 2] angles per position, float32. Wavelengths beyond the original context are stretched, those well within it are kept."""
    plain = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return plain.astype(np.float32)
    wavelength = 2 * math.pi / plain
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    keep = np.clip((scaling.original_length / wavelength - low) / (high - low), 0.0, 1.0)
    return (plain * keep + plain / scaling.factor * (1 - keep)).astype(np.float32)


def rotation(positions: Int[AnyArray, "B T"], angles: np.ndarray) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """Cosines and sines of every position, float32, with an axis for the heads."""
    angle = positions[..., None, None].astype(jnp.float32) * angles
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Float[Array, "B T N H"], cos: Float[Array, "B T 1 half"], sin: Float[Array, "B T 1 half"]) -> Float[Array, "B T N H"]:
    """Turns each pair (x[i], x[i + H/2]) by its angle, in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
