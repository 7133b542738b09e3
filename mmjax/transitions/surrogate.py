"""Surrogate grafting (arXiv:2505.22664): an encoder learns to speak to a decoder without most of its late blocks, and is used with all.

The surrogate keeps the target's embeddings, its early blocks, its last ones, its final norm and its head; in the place of a range of blocks
stands a trained one, the translator, which begins as the first of the range. Both decoders read visual tokens through the same embeddings
and early blocks, so what the encoder has learned on one holds for the other.
"""

import dataclasses
import math
from collections.abc import Iterator

from mmjax.errors import InputError
from mmjax.models.config import DecoderConfig, Span, VLMConfig
from mmjax.transitions.manifest import Entry
from mmjax.transitions.stacks import cut, in_one_stack
from mmjax.typing import Array, Params

DECODER = "decoder/"
_DRAWN = ("weight_std", "embedding_std", "context_length")  # settings that say nothing about what is computed


def surrogate(params: Params, old: VLMConfig, new: VLMConfig, key: Array) -> tuple[Params, list[Entry]]:
    """Leaves out the blocks that `new.decoder.replaced` names; translators begin as the first of them. All else is the same array.

    A stage that begins with published weights needs no transition for this: only the blocks that the surrogate has are read.

    Raises:
        InputError: the decoder of the stage before is a surrogate already, that of this stage is none, or it is cut from another one.
    """
    del key
    if old.decoder.replaced:
        raise InputError(f"the decoder of the stage before is a surrogate already: blocks {_ranges(old.decoder)} are replaced.")
    if not new.decoder.replaced:
        raise InputError("the decoder of this stage is no surrogate: decoder.replaced is empty.")
    _check_same(old.decoder, new.decoder)
    result = cut(params, "decoder", new.decoder.spans)
    entries = []
    for path, value in result.items():
        source, span = in_one_stack(path, new.decoder) if path.startswith(DECODER) else (path, None)
        if span is not None:
            entries.append(Entry.of(value, path, source, "copied", describe(span, new.decoder)))
    return result, entries


def graft(params: Params, old: VLMConfig, new: VLMConfig, key: Array) -> tuple[Params, list[Entry]]:
    """Takes encoder and connector from a surrogate, and leaves its decoder behind: that of this stage is read from the stage's weights.

    Raises:
        InputError: the decoder of the stage before is no surrogate of that of this stage.
    """
    del key
    if not old.decoder.replaced:
        raise InputError("the decoder of the stage before is no surrogate: its decoder.replaced is empty.")
    if new.decoder.replaced:
        raise InputError(f"the decoder of this stage is still a surrogate: blocks {_ranges(new.decoder)} are replaced; say ().")
    _check_same(old.decoder, new.decoder)
    return {path: value for path, value in params.items() if not path.startswith(DECODER)}, []


def describe(span: Span, decoder: DecoderConfig) -> str:
    """Which blocks of the published model a stack has, for a manifest."""
    blocks = f"block {span.start}" if span.size == 1 else f"blocks {span.start} to {span.stop - 1}"
    if not span.path.startswith("translators/"):
        return blocks
    first, end = decoder.replaced[int(span.path.split("/")[1])]
    return f"begins as {blocks}, in the place of {first} to {end - 1}"


def problems(decoder: DecoderConfig) -> Iterator[str]:
    """What is wrong with a surrogate's ranges: they lie inside the decoder, in order and apart, each with room for its translators."""
    before = 0
    for first, end in decoder.replaced:
        if not before <= first < end <= decoder.layers:
            where = f"with {before} <= first < end <= {decoder.layers}" if before < decoder.layers else "of blocks that are left"
            yield f"replaced has ({first}, {end}), which is no range [first, end) {where}"
        elif not 1 <= decoder.translators <= end - first:
            yield f"translators is {decoder.translators}, but ({first}, {end}) has {end - first} blocks for them to begin as"
        before = max(before, end)


def differences(surrogate: DecoderConfig, target: DecoderConfig) -> Iterator[str]:
    """Settings in which a surrogate and its target disagree, other than what is replaced."""
    for field in dataclasses.fields(DecoderConfig):
        ours, theirs = getattr(surrogate, field.name), getattr(target, field.name)
        equal = math.isclose(ours, theirs, rel_tol=1e-5) if isinstance(ours, float) and isinstance(theirs, float) else ours == theirs
        if field.name not in ("replaced", "translators", *_DRAWN) and not equal:
            yield f"decoder.{field.name} of the surrogate is {ours}, and of the target {theirs}"


def _check_same(old: DecoderConfig, new: DecoderConfig) -> None:
    first, second = (old, new) if old.replaced else (new, old)
    found = list(differences(first, second))
    if found:
        raise InputError(f"surrogate and target are not the same model: {'; '.join(found)}.")


def _ranges(decoder: DecoderConfig) -> str:
    return " and ".join(f"{first} to {end - 1}" for first, end in decoder.replaced)
