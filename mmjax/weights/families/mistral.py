"""Mistral (arXiv:2310.06825): Llama with a sliding window."""

import dataclasses
from typing import Any

from mmjax.models.config import DecoderConfig
from mmjax.weights.families import llama
from mmjax.weights.families.base import ConfigJson, Family, GGUFForm


def read(c: ConfigJson) -> DecoderConfig:
    window = c.number("sliding_window", None)
    return dataclasses.replace(llama.read_decoder(c), sliding_window=window)


def write(config: DecoderConfig) -> dict[str, Any]:
    return llama.write_decoder(config) | {"sliding_window": config.sliding_window}


def accepts(config: DecoderConfig) -> bool:
    return not (
        config.qkv_bias
        or config.output_bias
        or config.mlp_bias
        or config.query_key_norm
        or config.experts
    )


FAMILY = Family(
    "Mistral",
    ("mistral",),
    "MistralForCausalLM",
    "decoder",
    read,
    llama.table,
    write,
    accepts,
    spellings=llama.SPELLINGS,
    unused=llama.UNUSED,
    gguf=GGUFForm(
        "llama",
        interleaved=True,
        optional_biases=True,
        applies=lambda c: not c["num_local_experts"] and bool(c["sliding_window"]),
    ),
)
