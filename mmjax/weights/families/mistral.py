"""Mistral (arXiv:2310.06825): Llama with a sliding window."""

import dataclasses
from typing import Any

from mmjax.models.config import DecoderConfig
from mmjax.weights.families import llama
from mmjax.weights.families.base import ConfigJson, Family, GGUFForm


def read(c: ConfigJson) -> DecoderConfig:
    config = llama.read_decoder(
        c, vocabulary=32_000, width=4096, mlp_width=14_336, kv_heads=8, context=131_072
    )
    # An explicit null means that there is none.
    window = c.content.get("sliding_window", 4096)
    return dataclasses.replace(
        config, sliding_window=None if window is None else c.number("sliding_window", 4096)
    )


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
