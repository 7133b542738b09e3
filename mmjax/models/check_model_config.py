"""What the settings of a model must agree on, whether they come from a recipe or from a published file."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from mmjax.models.config import DecoderConfig, Llama3Scaling, ViTConfig, YarnScaling
from mmjax.models.connectors.base import ConnectorConfig

_MAY_BE_ZERO = {"experts", "separate_last_layers"}
_MAY_BE_NEGATIVE = {"image_mean"}


def problems(config: Any, path: str = "") -> Iterator[str]:
    """A sentence, without its full stop, for each setting that no model can have.

    Args:
        config: a `ViTConfig`, a `DecoderConfig`, or a dataclass in one of them.
        path: in front of the names of settings, with its dot.
    """
    wrong = False
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from problems(value, f"{path}{field.name}.")
            continue
        if field.name == "replaced_layers":
            continue
        for item in value if isinstance(value, tuple) else (value,):
            found = _wrong_number(item, field.name in _MAY_BE_ZERO, field.name in _MAY_BE_NEGATIVE)
            wrong = wrong or found is not None
            if found:
                yield f"{path}{field.name} {found}, not {item}"
    if wrong:  # what follows divides by them
        return
    if isinstance(config, DecoderConfig):
        yield from _of_decoder(config, path)
    if isinstance(config, ViTConfig):
        yield from _of_encoder(config, path)


def _wrong_number(value: Any, may_be_zero: bool, may_be_negative: bool) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float):
        right = math.isfinite(value) and (value >= 0 or may_be_negative)
        return None if right else "must be finite and not negative"
    if may_be_zero:
        return None if value >= 0 else "must not be negative"
    return None if value > 0 else "must be positive"


def _of_decoder(c: DecoderConfig, path: str) -> Iterator[str]:
    if c.heads % c.kv_heads:
        yield f"{path}heads {c.heads} must be divisible by kv_heads {c.kv_heads}"
    if c.head_dim % 2:
        yield f"{path}head_dim must be even for rotary positions, not {c.head_dim}"
    scaling = c.rope_scaling
    if not c.rope_theta or (scaling is not None and not scaling.factor):
        yield f"{path}rope_theta and the factor of rope_scaling must be positive"
    if (
        isinstance(scaling, Llama3Scaling)
        and not 0 < scaling.low_frequency_factor < scaling.high_frequency_factor
    ):
        yield (
            f"{path}rope_scaling must have 0 < low_frequency_factor < high_frequency_factor, not "
            f"{scaling.low_frequency_factor} and {scaling.high_frequency_factor}"
        )
    if isinstance(scaling, YarnScaling) and not 0 < scaling.beta_slow < scaling.beta_fast:
        yield (
            f"{path}rope_scaling must have 0 < beta_slow < beta_fast, not {scaling.beta_slow} and "
            f"{scaling.beta_fast}"
        )
    yield from _of_replaced_layers(c, path)
    if c.experts and c.experts_per_token > c.experts:
        yield f"{path}experts_per_token {c.experts_per_token} must not be more than experts {c.experts}"
    if c.experts and c.mlp_bias:
        yield f"{path}mlp_bias must be false with experts, which have no biases"


def _of_replaced_layers(c: DecoderConfig, path: str) -> Iterator[str]:
    """The ranges of a surrogate lie inside the decoder, in order and apart, each with room for its translators."""
    before = 0
    for first, end in c.replaced_layers:
        if not before <= first < end <= c.layers:
            allowed = (
                f"{before} <= first < end <= {c.layers}"
                if before < c.layers
                else "no blocks left to replace"
            )
            yield f"{path}replaced_layers must be ranges [first, end) in order, here with {allowed}, not ({first}, {end})"
        elif c.translators > end - first:
            yield (
                f"{path}translators {c.translators} must not be more than the {end - first} blocks of ({first}, {end}), which they begin as"
            )
        before = max(before, end)


def _of_encoder(c: ViTConfig, path: str) -> Iterator[str]:
    if c.width % c.heads:
        yield f"{path}width {c.width} must be divisible by heads {c.heads}"
    if c.patch_size > c.image_size:
        yield f"{path}image_size {c.image_size} must not be smaller than patch_size {c.patch_size}"
    if c.separate_last_layers > c.layers:
        yield f"{path}separate_last_layers {c.separate_last_layers} must not be more than layers {c.layers}"
    if 0 in c.image_std:
        yield f"{path}image_std must not be zero"


def connector_problems(
    connector: ConnectorConfig, vision: ViTConfig, path: str, *, first_stage: bool = False
) -> Iterator[str]:
    """The same for a connector behind an encoder; `path` without a dot. first_stage: no stage of a recipe comes before."""
    layers = connector.feature_layers
    if not layers:
        yield f"{path}.feature_layers must name at least one block of the encoder, whose output is read; it is empty"
    for layer in layers:
        if not 1 <= layer <= vision.layers:
            yield f"{path}.feature_layers must name blocks 1 to {vision.layers} of the encoder, not {layer}"
    if list(layers) != sorted(layers):
        yield f"{path}.feature_layers must be in the order in which blocks run, the earliest first, not {layers}"
    if vision.patch_size > 0:
        yield from connector.problems(path, vision, first_stage=first_stage)
