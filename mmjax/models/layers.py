"""A stack of equal blocks as one block with stacked parameters [layers, ...], run by a scan."""

from collections.abc import Callable
from typing import Any, Literal

import jax
from flax import nnx

Remat = Literal["none", "dots", "full"]

# What the backward pass may keep of a block: with "dots" the results of matrix products, with "full" only the block's input.
POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": jax.checkpoint_policies.nothing_saveable}


def stack(make_block: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """One block whose parameters carry a leading `layers` axis, each layer initialised from its own key."""

    @nnx.split_rngs(splits=layers)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def make(rngs: nnx.Rngs) -> nnx.Module:
        return make_block(rngs)

    return make(rngs)


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
