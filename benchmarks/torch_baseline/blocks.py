"""How a model's blocks and parts are run: eagerly or compiled, with or without activation checkpointing."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

WHOLE = 8  # a model of so many blocks is compiled whole, a deeper one block by block, as torchtitan does it
PRODUCTS = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]  # what "dots" keeps
VARIANTS = {
    "eager": None,
    "compile": {"mode": "default"},
    "max-autotune": {"mode": "max-autotune-no-cudagraphs"},
}


class Ways:
    """Functions that call blocks and parts.

    Args:
        remat: "none"; "dots": the backward pass has the results of matrix products and computes the rest of a block again; "full": it has a
            block's input.
        settings: of torch.compile, which then compiles every kind of block and part; None: they are called as they are.
    """

    def __init__(self, remat: str, settings: dict[str, Any] | None = None):
        block: Callable[..., Tensor] = _call
        if remat != "none":
            context = (
                {"context_fn": functools.partial(create_selective_checkpoint_contexts, PRODUCTS)}
                if remat == "dots"
                else {}
            )
            block = functools.partial(_checkpointed, context)
        compiled = (
            functools.partial(torch.compile, dynamic=False, **settings)
            if settings
            else lambda function: function
        )
        self.block, self.part = compiled(block), compiled(_call)


def _call(module: nn.Module, *arguments: Any) -> Any:
    out = module(*arguments)
    return out


def _checkpointed(context: dict[str, Any], block: nn.Module, *arguments: Any) -> Tensor:
    return checkpoint(
        _call, block, *arguments, use_reentrant=False, preserve_rng_state=False, **context
    )


def loss_function(
    model: nn.Module, remat: str, variant: str
) -> tuple[Callable[[dict[str, Any]], Tensor], str]:
    """(function of a batch, how it was compiled) for one of VARIANTS."""
    settings = VARIANTS[variant]
    if settings is None:
        return functools.partial(model.loss, ways=Ways(remat)), ""
    if model.depth > WHOLE:
        return functools.partial(model.loss, ways=Ways(remat, settings)), "compiled block by block"
    return torch.compile(
        functools.partial(model.loss, ways=Ways(remat)), dynamic=False, **settings
    ), "compiled whole"
