"""Mistral (arXiv:2310.06825): Llama with a sliding window."""

import dataclasses
from typing import Any

from mmjax.models.config import DecoderConfig
from mmjax.weights.config_json import ConfigJson
from mmjax.weights.families import llama
from mmjax.weights.families.base import Family, PartConfig


def read(c: ConfigJson) -> DecoderConfig:
    config = llama.read_decoder(
        c, vocabulary=32_000, width=4096, mlp_width=14_336, kv_heads=8, context=131_072
    )
    # an explicit null switches it off
    return dataclasses.replace(
        config,
        sliding_window=None
        if c.content.get("sliding_window", 4096) is None
        else c.number("sliding_window", 4096),
    )


def write(config: DecoderConfig) -> dict[str, Any]:
    return llama.write_decoder(config) | {"sliding_window": config.sliding_window}


def accepts(config: PartConfig) -> bool:
    return isinstance(config, DecoderConfig) and not (
        config.qkv_bias
        or config.output_bias
        or config.mlp_bias
        or config.query_key_norm
        or config.experts
    )


MISTRAL = Family(
    "Mistral",
    ("mistral",),
    "MistralForCausalLM",
    read,
    write,
    llama.table,
    accepts,
    llama.SPELLINGS,
    llama.UNUSED,
)
