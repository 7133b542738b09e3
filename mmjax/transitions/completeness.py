"""Whether parameters are those of a model: every path present, none unknown, each of its shape, and none that would change its meaning."""

import math
from collections.abc import Collection, Iterator

import jax.numpy as jnp

from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import NOT_OF_THE_FUNCTION, VLMConfig
from mmjax.recipe.schema import ABSENT, differences
from mmjax.transitions.base import Difference, transitions
from mmjax.transitions.lora import is_lora
from mmjax.typing import Params

SHOWN = 8  # paths of one kind that a message lists
SHAPELESS = (*NOT_OF_THE_FUNCTION, "image_mean", "image_std")  # settings that say nothing of shapes
HEADS = "the columns of trained weights belong to the heads they were trained for"


def check(
    params: Params,
    names: tuple[str, ...],
    old: VLMConfig,
    new: VLMConfig,
    loaded: Collection[str] = (),
) -> None:
    """Checks the outcome of the transitions `names`; parts in `loaded` may be missing.

    A matrix may be bfloat16 where the model says float32: a frozen one is kept so, and made float32 when it is trained.

    Raises:
        InputError: listing what is missing, unexpected, misshapen or reinterpreted, and naming the transition that would help.
    """
    problems = [*_meaning(names, old, new), *_leaves(params, names, old, new, loaded)]
    if problems:
        raise InputError(
            "the parameters of the stage before do not become this stage's:\n"
            + "\n".join(f"  {line}" for line in problems)
        )


def _leaves(
    params: Params, names: tuple[str, ...], old: VLMConfig, new: VLMConfig, loaded: Collection[str]
) -> Iterator[str]:
    expected = parameters.abstract(new)[1]
    missing = {
        path: f"missing: {path} {leaf.shape}"
        for path, leaf in expected.items()
        if path not in params and (path.split("/")[0] not in loaded or is_lora(path))
    }
    unexpected = {
        path: f"unexpected: {path} {tuple(value.shape)}"
        for path, value in params.items()
        if path not in expected
    }
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
    hints = list(_hints(Difference(missing, unexpected, misshapen, new, names)))
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
        differ = [
            difference
            for difference in differences(before, after, path=part, ignored=SHAPELESS)
            if ABSENT not in difference
        ]
        for path, was, now in differ:
            yield f"{path} was {was} and is now {now}"
        if differ:
            yield f"keep the settings of {part} from one stage to the next, or let the stage's init_from.{part} say where it is read anew"


def _hints(difference: Difference) -> Iterator[str]:
    """What each transition has to say of it."""
    for transition in transitions().values():
        yield from transition.hints(difference)
    if any(
        "vision/separate_last_layers/" in path
        for path in (*difference.missing, *difference.unexpected)
    ):
        yield "vision.separate_last_layers changes: stages that follow each other must agree in it"


def _meaning(names: tuple[str, ...], old: VLMConfig, new: VLMConfig) -> Iterator[str]:
    """Settings that change no shape, but what the numbers stand for."""
    for name in ("vision.heads", "decoder.heads", "decoder.kv_heads", "decoder.head_dim"):
        part, field = name.split(".")
        before, after = getattr(getattr(old, part), field), getattr(getattr(new, part), field)
        if before != after:
            yield f"{name} was {before} and is now {after}: {HEADS}"
    ranges = [(model.decoder.replaced_layers, model.decoder.translators) for model in (old, new)]
    if all(replaced for replaced, _ in ranges) and ranges[0] != ranges[1]:
        yield f"decoder.replaced_layers was {ranges[0][0]} and is now {ranges[1][0]}: its stacks are those of other blocks"
    if (
        "merge_lora" not in names
        and min(old.lora.rank, new.lora.rank) > 0
        and not math.isclose(old.lora.alpha, new.lora.alpha)
    ):
        alphas = f"lora.alpha was {old.lora.alpha:g} and is now {new.lora.alpha:g}"
        yield f"{alphas}, which would rescale trained low-rank updates; 'merge_lora' them first"
    yield from new.connector.reinterpretations(
        old.connector, old.vision, new.vision, inflated="inflate" in names
    )
