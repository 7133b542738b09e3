"""The projections around attention: query, key, value, output."""

import jax.numpy as jnp
from flax import nnx

from mmjax.models.linear import Linear
from mmjax.models.norms import RMSNorm
from mmjax.typing import Array, Float


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
            return Linear(width, count * head_dim, axes=("embed", axis), bias=bias, std=std, dtype=dtype, rngs=rngs)

        self.query = into(heads, "heads")
        self.key = into(kv_heads, "kv_heads")
        self.value = into(kv_heads, "kv_heads")
        self.output = Linear(heads * head_dim, width, axes=("heads", "embed"), bias=output_bias, std=std, dtype=dtype, rngs=rngs)
        if norm_epsilon is not None:
            self.query_norm = RMSNorm(head_dim, norm_epsilon)
            self.key_norm = RMSNorm(head_dim, norm_epsilon)
        self.head_dim, self.norms = head_dim, norm_epsilon is not None

    def heads(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Queries, keys and values of every head."""
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        return (self.query_norm(q), self.key_norm(k), v) if self.norms else (q, k, v)

    def split(self, x: Float[Array, "B T NH"]) -> Float[Array, "B T N H"]:
        return x.reshape(*x.shape[:-1], -1, self.head_dim)

    def join(self, x: Float[Array, "B T N H"]) -> Float[Array, "B T NH"]:
        return x.reshape(*x.shape[:-2], -1)
