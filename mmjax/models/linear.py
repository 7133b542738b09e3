"""The linear map, with an optional low-rank update beside its kernel."""

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.layout import keep_rows
from mmjax.typing import Array, Float

# A normal cut at two standard deviations has 0.8796 times the standard deviation of the whole one.
CUT_NORMAL_STD = 0.87962566


def truncated_normal(key: Array, shape: tuple[int, ...], std: float) -> Array:
    """Float32 normal numbers cut at two deviations and rescaled to the standard deviation `std`."""
    return jax.random.truncated_normal(key, -2.0, 2.0, shape) * (std / CUT_NORMAL_STD)


class Linear(nnx.Module):
    """y = x W + b, and with a LoRA beside it y = x W + b + scale (x A) B.

    Parameters: kernel [in, out], bias [out], lora_a [in, r], lora_b [r, out] (`models.lora` adds the last two).

    Args:
        axes: logical names of the kernel's two axes.
        std: of the kernel's initialisation; None: fan_in ** -0.5.
        dtype: of the product; the parameters are float32.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        axes: tuple[str | None, str | None],
        bias: bool,
        std: float | None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        kernel = truncated_normal(rngs.params(), (inputs, outputs), inputs**-0.5 if std is None else std)
        self.kernel = nnx.Param(kernel, axes=axes)
        if bias:
            self.bias = nnx.Param(jnp.zeros(outputs), axes=(axes[1],))
        self.has_bias = bias
        self.dtype = dtype
        self.lora_a: nnx.Param
        self.lora_b: nnx.Param
        self.lora_scale = 0.0

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        # Two-dimensional products: the weight gradient is one plain matrix product, and no transposed copy of the activations is made.
        x = keep_rows(x)
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        y = rows @ self.kernel[...].astype(self.dtype)
        if self.lora_scale:
            low = rows @ self.lora_a[...].astype(self.dtype)
            y = y + self.lora_scale * (low @ self.lora_b[...].astype(self.dtype))
        if self.has_bias:
            y = y + self.bias[...].astype(self.dtype)
        return keep_rows(y.reshape(*x.shape[:-1], y.shape[-1]))
