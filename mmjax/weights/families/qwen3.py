"""Qwen3 (arXiv:2505.09388): Llama with a norm over every head of queries and keys."""

import dataclasses
from typing import Any

from mmjax.models.config import DecoderConfig
from mmjax.weights.config_keys import DECODER, ConfigKeys
from mmjax.weights.families import llama
from mmjax.weights.families.base import ConfigJson, Family, GGUFForm


def read(c: ConfigJson) -> DecoderConfig:
    config, bias = llama.read_decoder(c), c.flag("attention_bias")
    return dataclasses.replace(
        config,
        query_key_norm=True,
        qkv_bias=bias,
        output_bias=bias,
        sliding_window=llama.read_window(c, config.layers),
    )


def write(config: DecoderConfig) -> dict[str, Any]:
    bias = {"attention_bias": config.qkv_bias}
    return llama.write_decoder(config) | llama.write_window(config) | bias


def accepts(config: DecoderConfig) -> bool:
    return (
        config.query_key_norm
        and config.qkv_bias == config.output_bias
        and not (config.mlp_bias or config.experts)
    )


KEYS = DECODER | ConfigKeys(
    obeyed="attention_bias use_sliding_window sliding_window max_window_layers"
)

FAMILY = Family(
    "Qwen3",
    ("qwen3",),
    "Qwen3ForCausalLM",
    "decoder",
    read,
    llama.table,
    write,
    accepts,
    spellings=llama.SPELLINGS,
    unused=llama.UNUSED,
    gguf=GGUFForm("qwen3"),
    keys={"qwen3": KEYS},
)
