"""A mixture of experts: a router picks some of many MLPs for every token (Mixtral, arXiv:2401.04088)."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from mmjax.models.layers import Linear, truncated_normal
from mmjax.typing import Array, Float, Int


class MoE(nnx.Module):
    """sum over the chosen experts e of weight_e * down_e(silu(gate_e(x)) * up_e(x)).

    The weights are a softmax over the router's scores of the chosen experts. No token is ever dropped: tokens are sorted by expert, and
    each expert multiplies its own run of rows, however long it is.

    Parameters: router/kernel [D, E], gate and up [E, D, F], down [E, F, D].
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        experts: int,
        chosen: int,
        *,
        std: float | None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        def kernels(inputs: int, outputs: int, axes: tuple[str, str]) -> nnx.Param:
            deviation = inputs**-0.5 if std is None else std
            return nnx.Param(
                truncated_normal(rngs.params(), (experts, inputs, outputs), deviation),
                axes=("expert", *axes),
            )

        self.router = Linear(
            width,
            experts,
            axes=("embed", None),
            bias=False,
            std=std,
            dtype=dtype,
            rngs=rngs,
            float32_output=True,
        )
        self.gate = kernels(width, hidden, ("embed", "mlp"))
        self.up = kernels(width, hidden, ("embed", "mlp"))
        self.down = kernels(hidden, width, ("mlp", "embed"))
        self.experts, self.chosen, self.dtype = experts, chosen, dtype

    def route(self, x: Float[Array, "M D"]) -> tuple[Float[Array, "M k"], Int[Array, "M k"]]:
        """Weights (float32, their sum is 1) and numbers of the experts of every token."""
        scores, experts = jax.lax.top_k(self.router(x), self.chosen)
        return jax.nn.softmax(scores, axis=-1), experts

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        tokens = rearrange(x, "B T D -> (B T) D").astype(self.dtype)
        weights, experts = self.route(tokens)
        chosen = rearrange(experts, "M k -> (M k)")
        order = jnp.argsort(chosen, stable=True)
        sizes = jnp.bincount(chosen, length=self.experts).astype(jnp.int32)

        def product(rows: Array, kernels: nnx.Param) -> Array:
            return jax.lax.ragged_dot(rows, kernels[...].astype(self.dtype), sizes)

        rows = tokens[order // self.chosen]
        rows = product(jax.nn.silu(product(rows, self.gate)) * product(rows, self.up), self.down)
        back = jnp.zeros_like(rows).at[order].set(rows, unique_indices=True)
        back = rearrange(back, "(M k) D -> M k D", k=self.chosen)
        return jnp.einsum("MkD,Mk->MD", back, weights.astype(self.dtype)).reshape(x.shape)
