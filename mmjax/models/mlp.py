"""Two-layer and gated perceptrons."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models.config import Activation
from mmjax.models.linear import Linear
from mmjax.typing import Array, Float


def gelu(x: Array) -> Array:
    """x (1 + erf(x / sqrt 2)) / 2 (arXiv:1606.08415), in float32, where 1 + erf loses nothing that counts."""
    y = x.astype(jnp.float32)  # the erfc of jax.nn.gelu is two branches, which takes a CPU several times as long
    return (0.5 * y * (1.0 + jax.lax.erf(y * 2**-0.5))).astype(x.dtype)


ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
}


class MLP(nnx.Module):
    """down(activation(up(x)))"""

    def __init__(self, width: int, hidden: int, activation: Activation, *, bias: bool, std: float | None, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.up = Linear(width, hidden, axes=("embed", "mlp"), bias=bias, std=std, dtype=dtype, rngs=rngs)
        self.down = Linear(hidden, width, axes=("mlp", "embed"), bias=bias, std=std, dtype=dtype, rngs=rngs)
        self.activation = activation

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)) (arXiv:2002.05202)"""

    def __init__(self, width: int, hidden: int, *, bias: bool = False, std: float | None, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.gate = Linear(width, hidden, axes=("embed", "mlp"), bias=bias, std=std, dtype=dtype, rngs=rngs)
        self.up = Linear(width, hidden, axes=("embed", "mlp"), bias=bias, std=std, dtype=dtype, rngs=rngs)
        self.down = Linear(hidden, width, axes=("mlp", "embed"), bias=bias, std=std, dtype=dtype, rngs=rngs)

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))
