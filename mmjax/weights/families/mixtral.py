"""Mixtral (arXiv:2401.04088): Mistral with a mixture of experts in every block."""

import dataclasses
from typing import Any

from mmjax.models.config import DecoderConfig
from mmjax.weights.config_keys import DECODER, OUTPUTS, TRAINING, ConfigKeys
from mmjax.weights.families import llama
from mmjax.weights.families.base import ConfigJson, Family, GGUFForm
from mmjax.weights.rules import TRANSPOSED, Rule, linear

MOE = f"{llama.BLOCK}.block_sparse_moe"


def read(c: ConfigJson) -> DecoderConfig:
    experts = c.number(
        "num_experts", c.number("num_local_experts")
    )  # the former counts, if it is there
    if not experts:
        raise c.wrong("num_local_experts", experts, "positive")
    decoder, window = llama.read_decoder(c), c.number("sliding_window", None)
    llama.check_layer_kinds(c, decoder.layers, window)
    return dataclasses.replace(
        decoder,
        sliding_window=window,
        experts=experts,
        experts_per_token=c.number("num_experts_per_tok"),
    )


def write(config: DecoderConfig) -> dict[str, Any]:
    experts = {"num_local_experts": config.experts, "num_experts_per_tok": config.experts_per_token}
    return llama.write_decoder(config) | experts | {"sliding_window": config.sliding_window}


def rules(config: DecoderConfig) -> list[Rule]:
    rules = [*llama.table_without_mlp(config), *linear(f"{llama.LAYERS}/mlp/router", f"{MOE}.gate")]
    for name, expert in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        path = f"{llama.LAYERS}/mlp/{name}"
        rules.append(Rule(path, f"{MOE}.experts.{{expert}}.{expert}.weight", TRANSPOSED))
    return rules


def accepts(config: DecoderConfig) -> bool:
    return config.experts > 0 and not (
        config.qkv_bias or config.output_bias or config.query_key_norm
    )


KEYS = DECODER | ConfigKeys(
    obeyed="sliding_window num_local_experts num_experts num_experts_per_tok",
    harmless={
        TRAINING: "router_aux_loss_coef router_jitter_noise",
        OUTPUTS: "output_router_logits",
    },
)

FAMILY = Family(
    "Mixtral",
    ("mixtral",),
    "MixtralForCausalLM",
    "decoder",
    read,
    rules,
    write,
    accepts,
    spellings=llama.SPELLINGS,
    unused=llama.UNUSED,
    gguf=GGUFForm("llama", interleaved=True, applies=lambda c: bool(c["num_local_experts"])),
    keys={"mixtral": KEYS},
)
