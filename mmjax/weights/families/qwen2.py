"""Qwen2 and Qwen2.5 (arXiv:2412.15115): Llama with biases on queries, keys and values."""

import dataclasses
from typing import Any

from mmjax.models.config import DecoderConfig
from mmjax.weights.config_json import ConfigJson
from mmjax.weights.families import llama
from mmjax.weights.families.base import Family, PartConfig


def read(c: ConfigJson) -> DecoderConfig:
    config = llama.read_decoder(
        c, vocabulary=151_936, width=4096, mlp_width=22_016, kv_heads=32, context=32_768
    )
    return dataclasses.replace(config, qkv_bias=True, sliding_window=llama.window(c, config.layers))


def write(config: DecoderConfig) -> dict[str, Any]:
    return llama.write_decoder(config) | llama.window_json(config)


def accepts(config: PartConfig) -> bool:
    return (
        isinstance(config, DecoderConfig)
        and config.qkv_bias
        and not (config.output_bias or config.mlp_bias or config.query_key_norm or config.experts)
    )


QWEN2 = Family(
    "Qwen2.5",
    ("qwen2",),
    "Qwen2ForCausalLM",
    read,
    write,
    llama.table,
    accepts,
    llama.SPELLINGS,
    llama.UNUSED,
)
