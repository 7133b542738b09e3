"""Qwen2 and Qwen2.5 (arXiv:2412.15115): Llama with biases on queries, keys and values."""

import dataclasses
from typing import Any

from mmjax.models.config import DecoderConfig
from mmjax.weights.config_json import ConfigJson
from mmjax.weights.families import decoders
from mmjax.weights.families.family import Family, PartConfig


def read(c: ConfigJson) -> DecoderConfig:
    config = decoders.read(c, vocabulary=151_936, width=4096, mlp_width=22_016, kv_heads=32, context=32_768)
    return dataclasses.replace(config, qkv_bias=True, sliding_window=decoders.window(c, config.layers))


def write(config: DecoderConfig) -> dict[str, Any]:
    return decoders.write(config) | decoders.window_json(config)


def accepts(config: PartConfig) -> bool:
    return (
        isinstance(config, DecoderConfig)
        and config.qkv_bias
        and not (config.output_bias or config.mlp_bias or config.query_key_norm or config.experts)
    )


QWEN2 = Family("Qwen2.5", ("qwen2",), "Qwen2ForCausalLM", read, write, decoders.table, accepts, decoders.SPELLINGS, decoders.UNUSED)
