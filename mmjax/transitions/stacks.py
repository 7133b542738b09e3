"""Blocks that lie in one stack, as in published models, or in several (`Span`): which parameter is which, and from the one to the other."""

from collections.abc import Sequence

import jax.numpy as jnp

from mmjax.models.config import DecoderConfig, Span, ViTConfig
from mmjax.typing import Params

WHOLE = "layers"  # the path of the one stack, below its part


def in_one_stack(path: str, config: ViTConfig | DecoderConfig) -> tuple[str, Span | None]:
    """Where a parameter of a part is when all blocks lie in one stack: its path there, and which of the blocks; None: it is of no block.

    Args:
        path: from the part on, such as "decoder/translators/0/layers/mlp/up/kernel".
        config: of the part.
    """
    part = path.split("/", 1)[0]
    for span in config.spans:
        prefix = f"{part}/{span.path}/"
        if path.startswith(prefix):
            return f"{part}/{WHOLE}/{path.removeprefix(prefix)}", span
    return path, None


def cut(params: Params, part: str, spans: Sequence[Span]) -> Params:
    """The parameters of a part whose blocks lie in one stack, with a stack for each span; all others are the same arrays."""
    prefix = f"{part}/{WHOLE}/"
    stacked = {path.removeprefix(prefix): value for path, value in params.items() if path.startswith(prefix)}
    others = {path: value for path, value in params.items() if not path.startswith(prefix)}
    return others | {f"{part}/{span.path}/{name}": value[span.start : span.stop] for span in spans for name, value in stacked.items()}


def join(params: Params, part: str, spans: Sequence[Span]) -> Params:
    """The parameters of a part with all blocks in one stack, in the order in which they run; all others are the same arrays."""
    if [span.path for span in spans] == [WHOLE]:
        return params
    prefixes = [f"{part}/{span.path}/" for span in spans]
    names, *same = [{path.removeprefix(prefix) for path in params if path.startswith(prefix)} for prefix in prefixes]
    assert all(found == names for found in same), "stacks of one part have the same parameters"
    others = {path: value for path, value in params.items() if not path.startswith(tuple(prefixes))}
    return others | {f"{part}/{WHOLE}/{name}": jnp.concatenate([params[prefix + name] for prefix in prefixes]) for name in sorted(names)}
