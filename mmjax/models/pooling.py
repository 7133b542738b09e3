"""Attention pooling: one vector for a picture (SigLIP, arXiv:2303.15343, with the head of arXiv:2106.04560)."""

import jax.numpy as jnp
from flax import nnx

from mmjax.kernels.attention import attention
from mmjax.models.attention import Projections
from mmjax.models.config import ViTConfig
from mmjax.models.linear import truncated_normal
from mmjax.models.mlp import MLP
from mmjax.models.norms import make_norm
from mmjax.typing import Array, Float


class PoolingHead(nnx.Module):
    """x = attention(probe, patches), then x + mlp(norm(x)): `probe` is one learned query."""

    def __init__(self, c: ViTConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.probe = nnx.Param(truncated_normal(rngs.params(), (c.width,), c.embedding_std), axes=("norm",))
        self.attention = Projections(
            c.width, c.heads, c.heads, c.width // c.heads, bias=True, output_bias=True, std=c.weight_std, dtype=dtype, rngs=rngs
        )
        self.norm = make_norm(c.norm, c.width, c.norm_epsilon)
        self.mlp = MLP(c.width, c.mlp_width, c.activation, bias=True, std=c.weight_std, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, features: Float[Array, "B P D"]) -> Float[Array, "B D"]:
        a = self.attention
        probe = jnp.broadcast_to(self.probe[...].astype(self.dtype), (features.shape[0], 1, features.shape[2]))
        heads = attention(a.split(a.query(probe)), a.split(a.key(features)), a.split(a.value(features)))
        x = a.output(a.join(heads))
        return (x + self.mlp(self.norm(x)))[:, 0]
