"""Mistral (arXiv:2310.06825): Llama with a sliding window."""

import dataclasses
from typing import Any

from mmjax.models.config import DecoderConfig
from mmjax.weights.config_keys import DECODER, ConfigKeys
from mmjax.weights.families import llama
from mmjax.weights.families.base import ConfigJson, Family, GGUFForm


def read(c: ConfigJson) -> DecoderConfig:
    decoder, window = llama.read_decoder(c), c.number("sliding_window", None)
    implied = {llama.FULL if window is None else llama.SLIDING}
    kinds = llama.layer_kinds(c, decoder.layers) or implied
    return dataclasses.replace(decoder, sliding_window=llama.one_window(c, kinds, window))


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


# Of a file with layer_types, AutoConfig makes a Ministral.
KEYS = DECODER | ConfigKeys(obeyed="sliding_window", model_types=("ministral",))

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
    keys={"mistral": KEYS},
)
