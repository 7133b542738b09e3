"""The linear map, with an optional low-rank update beside its kernel."""

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.mesh_axes import keep_rows
from mmjax.typing import Array, Float

# A normal cut at two standard deviations has 0.8796 times the standard deviation of the whole one.
CUT_NORMAL_STD = 0.87962566


def truncated_normal(key: Array, shape: tuple[int, ...], std: float) -> Array:
    """Float32 normal numbers cut at two deviations and rescaled to the standard deviation `std`."""
    return jax.random.truncated_normal(key, -2.0, 2.0, shape) * (std / CUT_NORMAL_STD)


@jax.custom_vjp
def product_in_float32(rows: Float[Array, "rows inputs"], kernel: Float[Array, "inputs outputs"]) -> Float[Array, "rows outputs"]:
    """rows @ kernel, float32 whatever the dtype of the two: the sums of a bfloat16 product are float32 and are handed over unrounded.

    The gradient of the result is rounded to that dtype, so that the backward pass, too, is products of two arrays of one dtype: one of
    float32 with bfloat16 would run at the rate of float32.
    """
    return jnp.matmul(rows, kernel, preferred_element_type=jnp.float32)


def _product_forward(rows: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return product_in_float32(rows, kernel), (rows, kernel)


def _product_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    rows, kernel = saved
    gradient = gradient.astype(rows.dtype)
    return gradient @ kernel.T, rows.T @ gradient


product_in_float32.defvjp(_product_forward, _product_backward)


class Linear(nnx.Module):
    """y = x W + b, and with a LoRA beside it y = x W + b + scale (x A) B.

    Parameters: kernel [in, out], bias [out], lora_a [in, r], lora_b [r, out] (`models.lora` adds the last two).

    Args:
        axes: logical names of the kernel's two axes.
        std: of the kernel's initialisation; None: fan_in ** -0.5.
        dtype: of the product; the parameters are float32.
        float32_output: whether the product is handed over in float32, unrounded (the head: logits).
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
        float32_output: bool = False,
    ):
        kernel = truncated_normal(rngs.params(), (inputs, outputs), inputs**-0.5 if std is None else std)
        self.kernel = nnx.Param(kernel, axes=axes)
        if bias:
            self.bias = nnx.Param(jnp.zeros(outputs), axes=(axes[1],))
        self.has_bias = bias
        self.dtype = dtype
        self.lora_a: nnx.Param
        self.lora_b: nnx.Param
        self.float32_output = float32_output
        self.lora_scale = 0.0

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        # Two-dimensional products: the weight gradient is one plain matrix product, and no transposed copy of the activations is made.
        x = keep_rows(x)
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        product = product_in_float32 if self.float32_output else jnp.matmul
        y = product(rows, self.kernel[...].astype(self.dtype))
        if self.lora_scale:
            low = rows @ self.lora_a[...].astype(self.dtype)
            y = y + self.lora_scale * product(low, self.lora_b[...].astype(self.dtype))
        if self.has_bias:
            y = y + self.bias[...].astype(y.dtype)
        return keep_rows(y.reshape(*x.shape[:-1], y.shape[-1]))
