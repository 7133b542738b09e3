"""Rotary positions (arXiv:2104.09864) with their published rescalings, and the projections around attention.

The two halves of a head are rotated against each other, as in Llama.
"""

import math

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from mmjax.models.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
)
from mmjax.models.layers import Linear, RMSNorm
from mmjax.typing import AnyArray, Array, Float, Int


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """[H / 2] angles per position, float32. With DynamicScaling these are the ones of a short text; see `rope_cos_sin`."""
    plain = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    match scaling:
        case LinearScaling(factor=factor):
            plain = plain / factor
        case Llama3Scaling():
            plain = _llama3(plain, scaling)
        case YarnScaling():
            plain = _yarn(plain, head_dim, theta, scaling)
    return plain.astype(np.float32)


def _llama3(plain: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    """Wavelengths beyond the original context are stretched, those well within it are kept."""
    wavelength = 2 * math.pi / plain
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    keep = np.clip((scaling.original_length / wavelength - low) / (high - low), 0.0, 1.0)
    return plain * keep + plain / scaling.factor * (1 - keep)


def _yarn(plain: np.ndarray, head_dim: int, theta: float, scaling: YarnScaling) -> np.ndarray:
    """arXiv:2309.00071, section 3.2: a ramp between the dimensions that turn beta_fast and beta_slow times in the original context."""

    def dimension(turns: float) -> float:
        return (
            head_dim
            * math.log(scaling.original_length / (turns * 2 * math.pi))
            / (2 * math.log(theta))
        )

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    ramp = (np.arange(head_dim // 2) - first) / max(last - first, 0.001)
    keep = 1 - np.clip(ramp, 0.0, 1.0)
    return plain * keep + plain / scaling.factor * (1 - keep)


def rope_cos_sin(
    positions: Int[AnyArray, "B T"], head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """Cosines and sines of every position, float32, with an axis for the heads."""
    angles = jnp.asarray(frequencies(head_dim, theta, scaling))
    if isinstance(scaling, DynamicScaling):
        angles = _stretched(positions, head_dim, theta, scaling)
    angle = positions[..., None, None].astype(jnp.float32) * angles
    factor = scaling.attention_factor if isinstance(scaling, YarnScaling) else 1.0
    return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def _stretched(
    positions: Int[AnyArray, "B T"], head_dim: int, theta: float, scaling: DynamicScaling
) -> Float[Array, "half"]:
    """Frequencies whose base grows with the longest text of the batch."""
    length = jnp.maximum(jnp.max(positions) + 1, scaling.original_length).astype(jnp.float32)
    growth = scaling.factor * length / scaling.original_length - (scaling.factor - 1)
    base = theta * growth ** (head_dim / (head_dim - 2))
    return base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)


def apply_rope(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T 1 half"], sin: Float[Array, "B T 1 half"]
) -> Float[Array, "B T N H"]:
    """Turns each pair (x[i], x[i + H/2]) by its angle, in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)


class Projections(nnx.Module):
    """Linear maps into N query heads and K key/value heads of dimension H, and back.

    Args:
        bias: on query, key and value; output_bias: on the output.
        norm_epsilon: of an RMSNorm over every head of queries and keys (Qwen3); None: there is none.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        bias: bool,
        output_bias: bool,
        norm_epsilon: float | None = None,
        std: float | None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        def into(count: int, axis: str) -> Linear:
            return Linear(
                width,
                count * head_dim,
                axes=("embed", axis),
                bias=bias,
                std=std,
                dtype=dtype,
                rngs=rngs,
            )

        self.query = into(heads, "heads")
        self.key = into(kv_heads, "kv_heads")
        self.value = into(kv_heads, "kv_heads")
        self.output = Linear(
            heads * head_dim,
            width,
            axes=("heads", "embed"),
            bias=output_bias,
            std=std,
            dtype=dtype,
            rngs=rngs,
        )
        if norm_epsilon is not None:
            self.query_norm = RMSNorm(head_dim, norm_epsilon)
            self.key_norm = RMSNorm(head_dim, norm_epsilon)
        self.head_dim, self.norms = head_dim, norm_epsilon is not None

    def heads(
        self, x: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Queries, keys and values of every head."""
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        return (self.query_norm(q), self.key_norm(k), v) if self.norms else (q, k, v)

    def split(self, x: Float[Array, "B T NH"]) -> Float[Array, "B T N H"]:
        return rearrange(x, "... (N H) -> ... N H", H=self.head_dim)

    def join(self, x: Float[Array, "B T N H"]) -> Float[Array, "B T NH"]:
        return rearrange(x, "... N H -> ... (N H)")
