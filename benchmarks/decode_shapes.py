"""Decoders that generation is timed with, and the least bytes that a token must bring from memory."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from synthetic import llama32_1b, small_decoder, tiny

from mmjax.models import presets
from mmjax.models.config import DecoderConfig, LanguageModelConfig

TABLE = "decoder/embedding"


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is generated.

    Attributes:
        prompt: tokens that are read at once. new: tokens that are produced after it.
        unroll: as in the recipes that have such a decoder.
    """

    decoder: DecoderConfig
    prompt: int
    new: int
    unroll: int = 1

    def model(self, dtype: str) -> LanguageModelConfig:
        """The decoder on its own."""
        return LanguageModelConfig(self.decoder, compute_dtype=dtype, unroll=self.unroll)  # type: ignore[arg-type]


def shapes() -> dict[str, Shape]:
    """By name: "tiny" is for trials, not for figures; "1b" and "8b" are for GPUs."""
    return {
        "tiny": Shape(tiny().decoder, prompt=16, new=4),
        "small": Shape(small_decoder(), prompt=96, new=32, unroll=3),
        "smollm2-135m": Shape(presets.smollm2_135m(), prompt=256, new=64),
        "1b": Shape(llama32_1b(), prompt=512, new=64),
        "8b": Shape(presets.llama31_8b(), prompt=512, new=64),
    }


def weight_bytes(config: DecoderConfig, params: Mapping[str, Any], batch: int) -> int:
    """Bytes of parameters that producing one token of every row reads: all of them, but of a table that is only looked up in, one line a
    row.

    Args:
        params: arrays or their shapes by path, with the dtypes that they are held in.
    """
    whole = sum(value.size * value.dtype.itemsize for value in params.values())
    if config.tie_word_embeddings:
        return whole
    table = params[TABLE]
    return whole - table.size * table.dtype.itemsize + batch * config.width * table.dtype.itemsize


def cache_bytes(config: DecoderConfig, batch: int, prompt: int, new: int, itemsize: int) -> float:
    """Bytes of keys and values that one of `new` tokens after a prompt reads, on average: those of all tokens up to itself."""
    seen = prompt + (new + 1) / 2
    return 2.0 * config.depth * batch * seen * config.kv_heads * config.head_dim * itemsize


def lower_bound(byte_count: float, bandwidth: float) -> float:
    """Seconds that bringing so many bytes takes at so many a second.

    Raises:
        ValueError: the bandwidth is not positive.
    """
    if not bandwidth > 0:
        raise ValueError(f"a bandwidth of {bandwidth} bytes a second; it must be positive")
    return byte_count / bandwidth
