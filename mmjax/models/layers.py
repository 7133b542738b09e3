"""A stack of equal blocks as one block with stacked parameters [layers, ...], run by a scan."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models.config import Span

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


class Stack(nnx.Module):
    """A stack below a name of its own: "layers" in its path says that its parameters have an axis of layers."""

    def __init__(self, layers: nnx.Module):
        self.layers = layers


def put_stacks(module: nnx.Module, spans: Iterable[Span], make_block: Callable[[nnx.Rngs], nnx.Module], rngs: nnx.Rngs) -> None:
    """Gives a module a stack at the path of each span."""
    for span in spans:
        layers = stack(make_block, span.size, rngs)
        match span.path.split("/"):
            case [name]:
                setattr(module, name, layers)
            case [name, inner]:
                assert inner == "layers"
                setattr(module, name, Stack(layers))
            case [name, number, inner]:
                assert inner == "layers"
                if not hasattr(module, name):
                    setattr(module, name, nnx.List([]))
                assert len(getattr(module, name)) == int(number), "stacks come in the order of their numbers"
                getattr(module, name).append(Stack(layers))


def run[Carry](
    module: nnx.Module,
    spans: Sequence[Span],
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
    if len(spans) == 1:
        return scan(_at(module, spans[0]), body, carry, per_layer, start=start, stop=stop, remat=remat, unroll=unroll)
    outputs, done = [], 0
    assert stop is None or start < stop, "no blocks to run"
    stop = sum(span.size for span in spans) if stop is None else stop
    for span in spans:
        first, last = max(start - done, 0), min(stop - done, span.size)
        if first < last:
            beside = jax.tree.map(lambda x, done=done, size=span.size: x[done : done + size], per_layer)
            carry, out = scan(_at(module, span), body, carry, beside, start=first, stop=last, remat=remat, unroll=unroll)
            outputs.append(out)
        done += span.size
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)


def _at(module: Any, span: Span) -> nnx.Module:
    """The stack at the path of a span."""
    for name in span.path.split("/"):
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
