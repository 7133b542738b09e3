"""The projections around attention: query, key, value, output."""

import jax.numpy as jnp
from flax import nnx

from mmjax.models.linear import Linear
from mmjax.typing import Array, Float


class Projections(nnx.Module):
    """Linear maps into N query heads and K key/value heads of dimension H, and back.

    Args:
        bias: on query, key and value; output_bias: on the output.
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
        std: float | None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        def into(count: int, axis: str) -> Linear:
            return Linear(width, count * head_dim, axes=("embed", axis), bias=bias, std=std, dtype=dtype, rngs=rngs)

        self.query = into(heads, "heads")
        self.key = into(kv_heads, "kv_heads")
        self.value = into(kv_heads, "kv_heads")
        self.output = Linear(heads * head_dim, width, axes=("heads", "embed"), bias=output_bias, std=std, dtype=dtype, rngs=rngs)
        self.head_dim = head_dim

    def split(self, x: Float[Array, "B T NH"]) -> Float[Array, "B T N H"]:
        return x.reshape(*x.shape[:-1], -1, self.head_dim)

    def join(self, x: Float[Array, "B T N H"]) -> Float[Array, "B T NH"]:
        return x.reshape(*x.shape[:-2], -1)
