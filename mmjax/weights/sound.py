"""Whether the settings of a model can be meant: sizes are positive, heads divide, numbers are finite."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from mmjax.errors import InputError
from mmjax.models.config import DecoderConfig, Llama3Scaling, ModelConfig, ViTConfig, YarnScaling
from mmjax.transitions import surrogate

_MAY_BE_ZERO = {"experts", "rank", "feature_layers", "parents", "late"}
_MAY_BE_NEGATIVE = {"image_mean"}


def check_sound(config: ModelConfig, where: str) -> None:
    """Raises InputError, which names the file and our name of the setting, for a config that no model can have."""
    for problem in _problems(config):
        raise InputError(f"{where}: {problem}.")


def _problems(config: Any) -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _problems(value)
            continue
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, float) and (not math.isfinite(item) or (item < 0 and field.name not in _MAY_BE_NEGATIVE)):
                yield f"{field.name} is {item}; it must be finite and not negative"
            if isinstance(item, int) and not isinstance(item, bool) and item < 1 and field.name not in _MAY_BE_ZERO:
                yield f"{field.name} is {item}; it must be positive"
    if isinstance(config, DecoderConfig):
        yield from _of_decoder(config)
    if isinstance(config, ViTConfig):
        yield from _of_encoder(config)


def _of_decoder(config: DecoderConfig) -> Iterator[str]:
    if config.heads % config.kv_heads:
        yield f"the number of heads is {config.heads}, which that of key/value heads, {config.kv_heads}, does not divide"
    if config.head_dim % 2:
        yield f"a head has {config.head_dim} channels; rotary positions need an even number"
    scaling = config.rope_scaling
    if not config.rope_theta or (scaling is not None and not scaling.factor):
        yield "the base and the factor of rotary positions must be positive"
    if isinstance(scaling, Llama3Scaling) and not 0 < scaling.low_frequency_factor < scaling.high_frequency_factor:
        yield f"rotary positions change between the frequencies {scaling.low_frequency_factor} and {scaling.high_frequency_factor}"
    if isinstance(scaling, YarnScaling) and not 0 < scaling.beta_slow < scaling.beta_fast:
        yield f"rotary positions change between {scaling.beta_slow} and {scaling.beta_fast} turns"
    yield from surrogate.problems(config)
    if config.experts and config.experts_per_token > config.experts:
        yield f"there are {config.experts} experts, of which every token would have {config.experts_per_token}"


def _of_encoder(config: ViTConfig) -> Iterator[str]:
    if config.width % config.heads:
        yield f"the width is {config.width}, which the number of heads, {config.heads}, does not divide"
    if config.patch_size > config.image_size:
        yield f"patches are {config.patch_size} pixels wide, and pictures {config.image_size}"
    if config.late > config.layers:
        yield f"{config.late} late blocks are more than the {config.layers} that there are"
    if 0 in config.image_std:
        yield "the deviation of pixels is zero"
