"""The parts that encoders, decoders and connectors are built of: linear maps, norms, perceptrons, boundary tokens,
and stacks of equal blocks.

Activations have the compute dtype; parameters, and the statistics of norms, are float32. A stack is one block whose parameters have a
leading axis of layers; it is run by a scan.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import repeat
from flax import nnx

from mmjax.distributed.mesh import constrain_batch
from mmjax.models.config import Activation, LayerRange, Norm
from mmjax.typing import Array, Float

# A normal cut at two standard deviations has 0.8796 times the standard deviation of the whole one.
CUT_NORMAL_STD = 0.87962566


def truncated_normal(key: Array, shape: tuple[int, ...], std: float) -> Array:
    """Float32 normal numbers cut at two deviations and rescaled to the standard deviation `std`."""
    return jax.random.truncated_normal(key, -2.0, 2.0, shape) * (std / CUT_NORMAL_STD)


@jax.custom_vjp
def matmul_float32(
    rows: Float[Array, "rows inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "rows outputs"]:
    """rows @ kernel, float32 whatever the dtype of the two: the sums of a bfloat16 product are float32 and are handed over unrounded.

    The gradient of the result is rounded to that dtype, so that the backward pass, too, is products of two arrays of one dtype: one of
    float32 with bfloat16 would run at the rate of float32.
    """
    return jnp.matmul(rows, kernel, preferred_element_type=jnp.float32)


def _product_forward(rows: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return matmul_float32(rows, kernel), (rows, kernel)


def _product_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    rows, kernel = saved
    gradient = gradient.astype(rows.dtype)
    return gradient @ kernel.T, rows.T @ gradient


matmul_float32.defvjp(_product_forward, _product_backward)


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
        kernel = truncated_normal(
            rngs.params(), (inputs, outputs), inputs**-0.5 if std is None else std
        )
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
        x = constrain_batch(x)
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        product = matmul_float32 if self.float32_output else jnp.matmul
        y = product(rows, self.kernel[...].astype(self.dtype))
        if self.lora_scale:
            low = rows @ self.lora_a[...].astype(self.dtype)
            y = y + self.lora_scale * product(low, self.lora_b[...].astype(self.dtype))
        if self.has_bias:
            y = y + self.bias[...].astype(y.dtype)
        return constrain_batch(y.reshape(*x.shape[:-1], y.shape[-1]))


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


def gelu(x: Array) -> Array:
    """x (1 + erf(x / sqrt 2)) / 2 (arXiv:1606.08415), in float32, where 1 + erf loses nothing that counts."""
    # The erfc of jax.nn.gelu is two branches, which takes a CPU several times as long.
    y = x.astype(jnp.float32)
    return (0.5 * y * (1.0 + jax.lax.erf(y * 2**-0.5))).astype(x.dtype)


ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
}


class MLP(nnx.Module):
    """down(activation(up(x)))"""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: Activation,
        *,
        bias: bool,
        std: float | None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.up = Linear(
            width, hidden, axes=("embed", "mlp"), bias=bias, std=std, dtype=dtype, rngs=rngs
        )
        self.down = Linear(
            hidden, width, axes=("mlp", "embed"), bias=bias, std=std, dtype=dtype, rngs=rngs
        )
        self.activation = activation

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)) (arXiv:2002.05202)"""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        bias: bool = False,
        std: float | None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.gate = Linear(
            width, hidden, axes=("embed", "mlp"), bias=bias, std=std, dtype=dtype, rngs=rngs
        )
        self.up = Linear(
            width, hidden, axes=("embed", "mlp"), bias=bias, std=std, dtype=dtype, rngs=rngs
        )
        self.down = Linear(
            hidden, width, axes=("mlp", "embed"), bias=bias, std=std, dtype=dtype, rngs=rngs
        )

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class ImageBoundaryTokens(nnx.Module):
    """Two learned vectors around the visual tokens of every image, normal with deviation D ** -0.5 (arXiv:2505.22664)."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        start, end = (jax.random.normal(rngs.params(), (width,)) * width**-0.5 for _ in range(2))
        self.start, self.end = nnx.Param(start, axes=("norm",)), nnx.Param(end, axes=("norm",))

    def __call__(self, tokens: Float[Array, "B L D"]) -> Float[Array, "B L+2 D"]:
        first, last = (
            repeat(vector[...].astype(tokens.dtype), "D -> B 1 D", B=len(tokens))
            for vector in (self.start, self.end)
        )
        return jnp.concatenate([first, tokens, last], axis=1)


Remat = Literal["none", "dots", "full"]

# What the backward pass may keep of a block: with "dots" the results of matrix products, with "full" only the block's input.
POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def stack(make_block: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """One block whose parameters carry a leading `layers` axis, each layer initialised from its own key."""

    @nnx.split_rngs(splits=layers)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def make(rngs: nnx.Rngs) -> nnx.Module:
        return make_block(rngs)

    return make(rngs)


class Stack(nnx.Module):
    """A stack below a name of its own: "layers" in its path says that its parameters have an axis of layers."""

    def __init__(self, layers: nnx.Module):
        self.layers = layers


def put_stacks(
    module: nnx.Module,
    layer_ranges: Iterable[LayerRange],
    make_block: Callable[[nnx.Rngs], nnx.Module],
    rngs: nnx.Rngs,
) -> None:
    """Gives a module a stack at the path of each range of layers."""
    for layer_range in layer_ranges:
        layers = stack(make_block, layer_range.size, rngs)
        match layer_range.path.split("/"):
            case [name]:
                setattr(module, name, layers)
            case [name, inner]:
                assert inner == "layers"
                setattr(module, name, Stack(layers))
            case [name, number, inner]:
                assert inner == "layers"
                if not hasattr(module, name):
                    setattr(module, name, nnx.List([]))
                assert len(getattr(module, name)) == int(number), (
                    "stacks come in the order of their numbers"
                )
                getattr(module, name).append(Stack(layers))


def run[Carry](
    module: nnx.Module,
    layer_ranges: Sequence[LayerRange],
    body: Callable[[Any, Carry, Any], tuple[Carry, Any]],
    carry: Carry,
    per_layer: Any = None,
    *,
    start: int = 0,
    stop: int | None = None,
    remat: Remat = "none",
    unroll: int = 1,
) -> tuple[Carry, Any]:
    """`scan` over the stacks of a module, one after the other; `start`, `stop` and `per_layer` count over all of them."""
    if len(layer_ranges) == 1:
        return scan(
            _at(module, layer_ranges[0]),
            body,
            carry,
            per_layer,
            start=start,
            stop=stop,
            remat=remat,
            unroll=unroll,
        )
    outputs, done = [], 0
    assert stop is None or start < stop, "no blocks to run"
    stop = sum(layer_range.size for layer_range in layer_ranges) if stop is None else stop
    for layer_range in layer_ranges:
        first, last = max(start - done, 0), min(stop - done, layer_range.size)
        if first < last:
            beside = jax.tree.map(
                lambda x, done=done, size=layer_range.size: x[done : done + size], per_layer
            )
            carry, out = scan(
                _at(module, layer_range),
                body,
                carry,
                beside,
                start=first,
                stop=last,
                remat=remat,
                unroll=unroll,
            )
            outputs.append(out)
        done += layer_range.size
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)


def _at(module: Any, layer_range: LayerRange) -> nnx.Module:
    """The stack at the path of a range of layers."""
    for name in layer_range.path.split("/"):
        module = module[int(name)] if name.isdecimal() else getattr(module, name)
    return module


def scan[Carry](
    blocks: nnx.Module,
    body: Callable[[Any, Carry, Any], tuple[Carry, Any]],
    carry: Carry,
    per_layer: Any = None,
    *,
    start: int = 0,
    stop: int | None = None,
    remat: Remat = "none",
    unroll: int = 1,
) -> tuple[Carry, Any]:
    """Runs `body(block, carry, inputs) -> (carry, outputs)` over layers start to stop of a stack.

    Args:
        per_layer: a pytree with a leading layers axis (such as a KV cache), handed to the body slice by slice.
        unroll: layers per iteration of the compiled loop.

    Returns:
        The last carry, and the outputs stacked along a leading layers axis.
    """
    structure, params = nnx.split(blocks)
    inputs = jax.tree.map(lambda x: x[start:stop], (params, per_layer))
    count = jax.tree.leaves(inputs)[0].shape[0]
    unroll = max(1, min(unroll, count))

    def step(carry: Carry, inputs: Any) -> tuple[Carry, Any]:
        block_params, extra = inputs
        return body(nnx.merge(structure, block_params), carry, extra)

    if remat != "none":
        # A loop keeps its recomputation apart from the first computation. Layers that are unrolled side by side do not: the compiler would
        # find the two equal and keep the result after all.
        step = jax.checkpoint(step, policy=POLICIES[remat], prevent_cse=unroll > 1)
    return jax.lax.scan(step, carry, inputs, unroll=unroll)
