"""Whether parameters are those of a model: every path present, none unknown, each of its shape, and none that would change its meaning."""

import dataclasses
import math
from collections.abc import Collection, Iterator

import jax.numpy as jnp

from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import ResamplerConfig, VLMConfig
from mmjax.transitions import positions
from mmjax.transitions.inflate import SCALES, windows_per_side
from mmjax.transitions.lora import is_lora
from mmjax.typing import Params

SHOWN = 8  # paths of one kind that a message lists
SHAPELESS = ("weight_std", "embedding_std", "context_length", "image_mean", "image_std")  # settings that say nothing of shapes
HEADS = "the columns of trained weights belong to the heads they were trained for"


def check(params: Params, names: tuple[str, ...], old: VLMConfig, new: VLMConfig, loaded: Collection[str] = ()) -> None:
    """Checks the outcome of the transitions `names`; parts in `loaded` may be missing.

    A matrix may be bfloat16 where the model says float32: a frozen one is kept so, and made float32 when it is trained.

    Raises:
        InputError: listing what is missing, unexpected, misshapen or reinterpreted, and naming the transition that would help.
    """
    problems = [*_meaning(names, old, new), *_leaves(params, names, old, new, loaded)]
    if problems:
        raise InputError("the parameters of the stage before do not become this stage's:\n" + "\n".join(f"  {line}" for line in problems))


def _leaves(params: Params, names: tuple[str, ...], old: VLMConfig, new: VLMConfig, loaded: Collection[str]) -> Iterator[str]:
    expected = parameters.abstract(new)[1]
    missing = {
        path: f"missing: {path} {leaf.shape}"
        for path, leaf in expected.items()
        if path not in params and (path.split("/")[0] not in loaded or is_lora(path))
    }
    unexpected = {path: f"unexpected: {path} {tuple(value.shape)}" for path, value in params.items() if path not in expected}
    misshapen = {
        path: f"misshapen: {path} is {tuple(params[path].shape)} and should be {leaf.shape}"
        for path, leaf in expected.items()
        if path in params and tuple(params[path].shape) != leaf.shape
    }
    mistyped = {
        path: f"mistyped: {path} is {params[path].dtype} and should be {leaf.dtype}"
        for path, leaf in expected.items()
        if path in params and params[path].dtype not in (leaf.dtype, jnp.bfloat16)
    }
    hints = list(_hints(missing, unexpected, misshapen, names))
    yield from hints
    if not hints and not list(_meaning(names, old, new)):
        yield from _changed_settings(old, new, {path.split("/")[0] for path in misshapen})
    for kind in (missing, unexpected, misshapen, mistyped):
        lines = list(kind.values())
        yield from lines[:SHOWN]
        if len(lines) > SHOWN:
            yield f"... and {len(lines) - SHOWN} more"


def _changed_settings(old: VLMConfig, new: VLMConfig, parts: Collection[str]) -> Iterator[str]:
    """Of parts with arrays of another shape, what the two stages say differently."""
    for part in sorted(parts):
        before, after = getattr(old, part), getattr(new, part)
        names = [field.name for field in dataclasses.fields(after) if hasattr(before, field.name) and field.name not in SHAPELESS]
        differ = [name for name in names if getattr(before, name) != getattr(after, name)]
        for name in differ:
            yield f"{part}.{name} was {getattr(before, name)} and is now {getattr(after, name)}"
        if differ:
            yield f"keep the settings of {part} from one stage to the next, or let the stage's weights.{part} say where it is read anew"


def _hints(missing: dict[str, str], unexpected: dict[str, str], misshapen: dict[str, str], names: tuple[str, ...]) -> Iterator[str]:
    """The transitions that may be wanting."""
    wrong = missing | unexpected | misshapen
    if "inflate" not in names and any(path.startswith(SCALES) for path in wrong):
        yield "the scales of the connector change: 'inflate' grows them out of those before"
    if positions.PATH in misshapen and not any(name.startswith("resize_positions") for name in names):
        yield "the grid of patches changes: 'resize_positions' resizes the position table (or 'resize_positions_half_pixel')"
    if "surrogate" not in names and any(path.startswith(("decoder/kept/", "decoder/translators/")) for path in missing):
        yield "blocks of the decoder are left out: 'surrogate' does that (or the stage's weights.decoder, which then gives what is left)"
    if "graft" not in names and any(path.startswith(("decoder/kept/", "decoder/translators/")) for path in unexpected):
        yield "a surrogate becomes whole again: 'graft', and the stage's weights.decoder names the decoder"
    if any("vision/late/" in path for path in missing | unexpected):
        yield "vision.late changes: stages that follow each other must agree in it"
    if "graft" in names and any(path.startswith("decoder/") for path in missing):
        yield "'graft' leaves the surrogate's decoder behind: name the whole one in the stage's weights.decoder"
    if "attach_lora" not in names and any(is_lora(path) for path in missing):
        yield "low-rank updates begin: 'attach_lora' adds them"
    if "merge_lora" not in names and any(is_lora(path) for path in unexpected):
        yield "low-rank updates end: 'merge_lora' adds them to their kernels"


def _meaning(names: tuple[str, ...], old: VLMConfig, new: VLMConfig) -> Iterator[str]:
    """Settings that change no shape, but what the numbers stand for."""
    for name in ("vision.heads", "decoder.heads", "decoder.kv_heads", "decoder.head_dim"):
        part, field = name.split(".")
        before, after = getattr(getattr(old, part), field), getattr(getattr(new, part), field)
        if before != after:
            yield f"{name} was {before} and is now {after}: {HEADS}"
    ranges = [(model.decoder.replaced, model.decoder.translators) for model in (old, new)]
    if all(replaced for replaced, _ in ranges) and ranges[0] != ranges[1]:
        yield f"decoder.replaced was {ranges[0][0]} and is now {ranges[1][0]}: its stacks are those of other blocks"
    if "merge_lora" not in names and min(old.lora.rank, new.lora.rank) > 0 and not math.isclose(old.lora.alpha, new.lora.alpha):
        alphas = f"lora.alpha was {old.lora.alpha:g} and is now {new.lora.alpha:g}"
        yield f"{alphas}, which would rescale trained low-rank updates; 'merge_lora' them first"
    if isinstance(old.connector, ResamplerConfig) and isinstance(new.connector, ResamplerConfig):
        yield from _resampler(names, old, new)


def _resampler(names: tuple[str, ...], old: VLMConfig, new: VLMConfig) -> Iterator[str]:
    before, after = old.connector, new.connector
    assert isinstance(before, ResamplerConfig) and isinstance(after, ResamplerConfig)
    if before.head_dim != after.head_dim:
        yield f"connector.head_dim was {before.head_dim} and is now {after.head_dim}: {HEADS}"
    if "inflate" in names:
        return
    if after.parents not in ((), tuple(range(len(before.windows)))):
        yield f"connector.parents is {after.parents}, which only 'inflate' follows; it is not among the stage's transitions"
    elif before.queries == after.queries:
        for scale in range(len(after.queries)):
            sides = windows_per_side(old, scale), windows_per_side(new, scale)
            if sides[0] != sides[1]:
                yield (
                    f"scale {scale} of the connector had {sides[0]} x {sides[0]} windows and now has {sides[1]} x {sides[1]} for as many "
                    "queries: queries belong to the window they were trained for, and only 'inflate' gives more windows more queries"
                )
