"""Surrogate grafting (arXiv:2505.22664): an encoder learns to speak to a decoder without most of its late blocks, and is used with all.

The surrogate keeps the target's embeddings, its early blocks, its last ones, its final norm and its head; a trained block, the translator,
stands in for a range of blocks and begins as the first of them. Both decoders read visual tokens through the same embeddings and early
blocks, so what the encoder has learned on one holds for the other.

Blocks lie in one stack, as in published models, or in several (`LayerRange`): `cut` and `join` go from one to the other.
"""

from collections.abc import Iterator, Sequence

import jax.numpy as jnp

from mmjax.errors import InputError
from mmjax.models.config import NOT_OF_THE_FUNCTION, DecoderConfig, LayerRange, ViTConfig, VLMConfig
from mmjax.recipe.schema import differences
from mmjax.transitions.base import Difference, Transition, beginning
from mmjax.transitions.manifest import Entry
from mmjax.typing import Array, Params

WHOLE = "layers"  # the path of the one stack, below its part


def in_one_stack(path: str, config: ViTConfig | DecoderConfig) -> tuple[str, LayerRange | None]:
    """Where a parameter of a part is when all blocks lie in one stack: its path there, and which of the blocks; None: it is of no block.

    Args:
        path: from the part on, such as "decoder/translators/0/layers/mlp/up/kernel".
        config: of the part.
    """
    part = path.split("/", 1)[0]
    for layer_range in config.layer_ranges:
        prefix = f"{part}/{layer_range.path}/"
        if path.startswith(prefix):
            return f"{part}/{WHOLE}/{path.removeprefix(prefix)}", layer_range
    return path, None


def cut(params: Params, part: str, layer_ranges: Sequence[LayerRange]) -> Params:
    """The parameters of a part whose blocks lie in one stack, with a stack for each range of layers; all others are the same arrays."""
    prefix = f"{part}/{WHOLE}/"
    stacked = {
        path.removeprefix(prefix): value
        for path, value in params.items()
        if path.startswith(prefix)
    }
    others = {path: value for path, value in params.items() if not path.startswith(prefix)}
    return others | {
        f"{part}/{layer_range.path}/{name}": value[layer_range.start : layer_range.stop]
        for layer_range in layer_ranges
        for name, value in stacked.items()
    }


def join(params: Params, part: str, layer_ranges: Sequence[LayerRange]) -> Params:
    """The parameters of a part with all blocks in one stack, in the order in which they run; all others are the same arrays."""
    if [layer_range.path for layer_range in layer_ranges] == [WHOLE]:
        return params
    prefixes = [f"{part}/{layer_range.path}/" for layer_range in layer_ranges]
    names, *same = [
        {path.removeprefix(prefix) for path in params if path.startswith(prefix)}
        for prefix in prefixes
    ]
    assert all(found == names for found in same), "stacks of one part have the same parameters"
    others = {path: value for path, value in params.items() if not path.startswith(tuple(prefixes))}
    return others | {
        f"{part}/{WHOLE}/{name}": jnp.concatenate([params[prefix + name] for prefix in prefixes])
        for name in sorted(names)
    }


DECODER = "decoder/"


def surrogate(
    params: Params, old: VLMConfig, new: VLMConfig, key: Array
) -> tuple[Params, list[Entry]]:
    """Removes the blocks that `new.decoder.replaced_layers` names; translators begin as the first of them. All else is the same array.

    A stage that begins with published weights needs no transition for this: only the blocks that the surrogate has are read.

    Raises:
        InputError: the decoder of the stage before is a surrogate already, that of this stage is none, or it is cut from another one.
    """
    del key
    if old.decoder.replaced_layers:
        raise InputError(
            f"the decoder of the stage before is a surrogate already: blocks {_ranges(old.decoder)} are replaced."
        )
    if not new.decoder.replaced_layers:
        raise InputError(
            "the decoder of this stage is no surrogate: decoder.replaced_layers is empty."
        )
    _check_same(old.decoder, new.decoder)
    result = cut(params, "decoder", new.decoder.layer_ranges)
    entries = []
    for path, value in result.items():
        source, layer_range = (
            in_one_stack(path, new.decoder) if path.startswith(DECODER) else (path, None)
        )
        if layer_range is not None:
            entries.append(
                Entry.of(value, path, source, "copied", describe(layer_range, new.decoder))
            )
    return result, entries


def graft(params: Params, old: VLMConfig, new: VLMConfig, key: Array) -> tuple[Params, list[Entry]]:
    """Takes encoder and connector from a surrogate, and drops its decoder: that of this stage is read from the stage's init_from.

    Raises:
        InputError: the decoder of the stage before is no surrogate of that of this stage.
    """
    del key
    if not old.decoder.replaced_layers:
        raise InputError(
            "the decoder of the stage before is no surrogate: its decoder.replaced_layers is empty."
        )
    if new.decoder.replaced_layers:
        raise InputError(
            f"the decoder of this stage is still a surrogate: blocks {_ranges(new.decoder)} are replaced; say ()."
        )
    _check_same(old.decoder, new.decoder)
    return {path: value for path, value in params.items() if not path.startswith(DECODER)}, []


def describe(layer_range: LayerRange, decoder: DecoderConfig) -> str:
    """Which blocks of the published model a stack has, for a manifest."""
    blocks = (
        f"block {layer_range.start}"
        if layer_range.size == 1
        else f"blocks {layer_range.start} to {layer_range.stop - 1}"
    )
    if not layer_range.path.startswith("translators/"):
        return blocks
    first, end = decoder.replaced_layers[int(layer_range.path.split("/")[1])]
    return f"begins as {blocks}, in the place of {first} to {end - 1}"


def _check_same(old: DecoderConfig, new: DecoderConfig) -> None:
    first, second = (old, new) if old.replaced_layers else (new, old)
    ignored = ("replaced_layers", "translators", *NOT_OF_THE_FUNCTION)
    found = [
        f"{path} of the surrogate is {cut}, and of the target {whole}"
        for path, cut, whole in differences(
            first, second, path="decoder", ignored=ignored, tolerance=1e-5
        )
    ]
    if found:
        raise InputError(f"surrogate and target are not the same model: {'; '.join(found)}.")


def _ranges(decoder: DecoderConfig) -> str:
    return " and ".join(f"{first} to {end - 1}" for first, end in decoder.replaced_layers)


_OF_SURROGATES = ("decoder/kept_layers/", "decoder/translators/")


def _surrogate_hints(difference: Difference) -> Iterator[str]:
    missing = beginning(difference.missing, *_OF_SURROGATES)
    if "surrogate" not in difference.names and any(missing):
        yield (
            "blocks of the decoder are removed: 'surrogate' does that (or the stage's init_from.decoder, "
            "which then gives those that stay)"
        )


def _graft_hints(difference: Difference) -> Iterator[str]:
    applied = "graft" in difference.names
    if not applied and any(beginning(difference.unexpected, *_OF_SURROGATES)):
        yield "a surrogate becomes whole again: 'graft', and the stage's init_from.decoder names the decoder"
    if applied and any(beginning(difference.missing, DECODER)):
        yield "'graft' drops the surrogate's decoder: name the whole one in the stage's init_from.decoder"


TRANSITIONS = (
    Transition("surrogate", surrogate, _surrogate_hints),
    Transition("graft", graft, _graft_hints),
)
