"""Qwen2 and Qwen2.5 (arXiv:2412.15115): Llama with biases on queries, keys and values."""

import dataclasses
from typing import Any

from mmjax.models.config import DecoderConfig
from mmjax.weights.config_keys import DECODER, ConfigKeys
from mmjax.weights.families import llama
from mmjax.weights.families.base import ConfigJson, Family, GGUFForm


def read(c: ConfigJson) -> DecoderConfig:
    config = llama.read_decoder(c)
    window = llama.read_window(c, config.layers)
    return dataclasses.replace(config, qkv_bias=True, sliding_window=window)


def write(config: DecoderConfig) -> dict[str, Any]:
    return llama.write_decoder(config) | llama.write_window(config)


def accepts(config: DecoderConfig) -> bool:
    return config.qkv_bias and not (
        config.output_bias or config.mlp_bias or config.query_key_norm or config.experts
    )


KEYS = DECODER | ConfigKeys(obeyed="use_sliding_window sliding_window max_window_layers")

FAMILY = Family(
    "Qwen2.5",
    ("qwen2",),
    "Qwen2ForCausalLM",
    "decoder",
    read,
    llama.table,
    write,
    accepts,
    spellings=llama.SPELLINGS,
    unused=llama.UNUSED,
    gguf=GGUFForm("qwen2"),
    keys={"qwen2": KEYS},
)
