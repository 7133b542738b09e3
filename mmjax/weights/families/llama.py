"""Llama 1, 2 and 3 (arXiv:2302.13971, arXiv:2307.09288, arXiv:2407.21783) and what has its form: Vicuna, SmolLM2."""

import dataclasses
from typing import Any

from mmjax.models.config import DecoderConfig
from mmjax.weights.config_json import ConfigJson
from mmjax.weights.families import decoders
from mmjax.weights.families.family import Family, PartConfig


def read(c: ConfigJson) -> DecoderConfig:
    config = decoders.read(c, vocabulary=32_000, width=4096, mlp_width=11_008, kv_heads=None, context=2048)
    bias = c.flag("attention_bias", False)
    return dataclasses.replace(config, qkv_bias=bias, output_bias=bias, mlp_bias=c.flag("mlp_bias", False))


def write(config: DecoderConfig) -> dict[str, Any]:
    return decoders.write(config) | {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}


def accepts(config: PartConfig) -> bool:
    return (
        isinstance(config, DecoderConfig)
        and config.qkv_bias == config.output_bias
        and not (config.query_key_norm or config.sliding_window or config.experts)
    )


LLAMA = Family("Llama", ("llama",), "LlamaForCausalLM", read, write, decoders.table, accepts, decoders.SPELLINGS, decoders.UNUSED)
