"""Llama 1, 2 and 3 (arXiv:2302.13971, arXiv:2307.09288, arXiv:2407.21783) and what has its form: Vicuna, SmolLM2.

The other decoders begin with what stands here: the table of tensors, and the settings of config.json, rotary positions among them.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mmjax.errors import InputError
from mmjax.models.config import (
    DecoderConfig,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
)
from mmjax.weights.config_keys import DECODER, ROPE, ConfigKeys, read_of_rope
from mmjax.weights.families.base import ConfigJson, Family, GGUFForm
from mmjax.weights.rules import Rule, linear, norm
from mmjax.weights.tensors import quoted

LAYERS = "decoder/layers"
BLOCK = "model.layers.{layer}"
FULL, SLIDING = "full_attention", "sliding_attention"
LAYER_KINDS = {FULL: FULL, SLIDING: SLIDING, "attention": FULL}  # the last is an older name
# Of a model that was saved without its head.
SPELLINGS = ((r"^(embed_tokens|layers|norm)\.", r"model.\1."),)
UNUSED = ("*.rotary_emb.inv_freq",)


def table(config: DecoderConfig) -> list[Rule]:
    """The tensors of a decoder with one MLP in each block."""
    rules = table_without_mlp(config)
    for name in ("gate", "up", "down"):
        rules += linear(f"{LAYERS}/mlp/{name}", f"{BLOCK}.mlp.{name}_proj", bias=config.mlp_bias)
    return rules


def table_without_mlp(config: DecoderConfig) -> list[Rule]:
    """Embeddings, norms, head and attention."""
    rules = [
        Rule("decoder/embedding", "model.embed_tokens.weight"),
        *norm("decoder/norm", "model.norm"),
        *norm(f"{LAYERS}/norm_attention", f"{BLOCK}.input_layernorm"),
        *norm(f"{LAYERS}/norm_mlp", f"{BLOCK}.post_attention_layernorm"),
    ]
    if not config.tie_word_embeddings:
        rules += linear("decoder/lm_head", "lm_head")
    for name in ("query", "key", "value", "output"):
        bias = config.output_bias if name == "output" else config.qkv_bias
        rules += linear(
            f"{LAYERS}/attention/{name}", f"{BLOCK}.self_attn.{name[0]}_proj", bias=bias
        )
    if config.query_key_norm:
        rules += norm(f"{LAYERS}/attention/query_norm", f"{BLOCK}.self_attn.q_norm")
        rules += norm(f"{LAYERS}/attention/key_norm", f"{BLOCK}.self_attn.k_norm")
    return rules


def read_decoder(c: ConfigJson) -> DecoderConfig:
    """The settings that all decoders have."""
    width, heads = c.number("hidden_size"), c.number("num_attention_heads")
    if not heads:
        raise c.wrong("num_attention_heads", 0, "positive")
    context = c.number("max_position_embeddings", None)
    # The older form of rotary positions, where it is there, counts alone: so transformers understands it.
    older = c.part("rope_scaling")
    rope = older if older.content else c.part("rope_parameters")
    for key, value in rope.content.items():
        if isinstance(value, Mapping):
            raise InputError(
                f"{rope.where}: {quoted(key)} has settings of its own; mmjax has the same rotary positions in all layers."
            )
    decoder = DecoderConfig(
        vocabulary=c.number("vocab_size"),
        width=width,
        layers=c.number("num_hidden_layers"),
        heads=heads,
        kv_heads=c.number("num_key_value_heads", heads),
        head_dim=c.number("head_dim", width // heads),
        mlp_width=c.number("intermediate_size"),
        rope_theta=rope.real("rope_theta", c.real("rope_theta")),
        rope_scaling=_read_scaling(c, rope, context),
        norm_epsilon=c.real("rms_norm_eps"),
        context_length=context,
        tie_word_embeddings=c.flag("tie_word_embeddings"),
    )
    rope.check_keys(ROPE, read_of_rope)
    return decoder


def _read_scaling(c: ConfigJson, rope: ConfigJson, context: int) -> RopeScaling | None:
    """The rescaling of rotary positions, from a config.json and the settings of rotary positions in it."""
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind not in ("default", "linear"):  # they depend on it
        context = c.number("max_position_embeddings")
    original = c.number(
        "original_max_position_embeddings", rope.number("original_max_position_embeddings", context)
    )
    if rope.real("partial_rotary_factor", c.real("partial_rotary_factor", 1.0)) != 1.0:
        raise InputError(
            f"{c.where}: partial_rotary_factor is not 1; mmjax rotates whole heads only."
        )
    match kind:
        case "default":
            return None
        case "linear":
            return LinearScaling("linear", rope.real("factor"))
        case "dynamic":
            return DynamicScaling("dynamic", rope.real("factor"), context)
        case "llama3":
            return Llama3Scaling(
                "llama3",
                rope.real("factor"),
                rope.real("low_freq_factor"),
                rope.real("high_freq_factor"),
                original,
            )
        case "yarn":
            factor = rope.real("factor", context / max(original, 1))
            # arXiv:2309.00071, equation 22; DeepSeek's two settings take it apart.
            scale, all_dim = rope.real("mscale", 0.0), rope.real("mscale_all_dim", 0.0)
            attention, apart, all_apart = (
                0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
                for weight in (1.0, scale, all_dim)
            )
            if scale and all_dim:
                attention = apart / all_apart
            return YarnScaling(
                "yarn",
                factor,
                original,
                attention_factor=rope.real("attention_factor", attention),
                beta_fast=rope.real("beta_fast", 32.0),
                beta_slow=rope.real("beta_slow", 1.0),
                truncate=rope.flag("truncate", True),
            )
    raise InputError(
        f"{rope.where}: rope_type is {quoted(kind)}; mmjax knows default, linear, dynamic, llama3 and yarn."
    )


def write_decoder(c: DecoderConfig) -> dict[str, Any]:
    """The settings that all decoders have, in the form that older versions of transformers read, too."""
    scaling = c.rope_scaling
    settings: dict[str, Any] | None = None
    # Where nobody knows it, nothing is said of it: transformers then has a length of its own.
    length = c.context_length or getattr(scaling, "original_length", None)
    match scaling:
        case LinearScaling():
            settings = {"rope_type": "linear", "factor": scaling.factor}
        case DynamicScaling():
            settings = {"rope_type": "dynamic", "factor": scaling.factor}
            length = scaling.original_length  # which transformers knows by no other name
        case Llama3Scaling():
            settings = {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.original_length,
            }
        case YarnScaling():
            settings = {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_length,
                "attention_factor": scaling.attention_factor,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "truncate": scaling.truncate,
            }
    known = {} if length is None else {"max_position_embeddings": length}
    return known | {
        "vocab_size": c.vocabulary,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.mlp_width,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_epsilon,
        "rope_theta": c.rope_theta,
        "rope_scaling": settings,
        "tie_word_embeddings": c.tie_word_embeddings,
    }


def layer_kinds(c: ConfigJson, layers: int) -> set[str]:
    """The kinds of layers that layer_types lists; none if it is not there."""
    types = c.setting("layer_types", None)
    if types is None:
        return set()
    if (
        not isinstance(types, list)
        or len(types) != layers
        or not all(isinstance(kind, str) and kind in LAYER_KINDS for kind in types)
    ):
        known = " or ".join(LAYER_KINDS)
        raise c.wrong("layer_types", types, f"a list of {layers} texts, each {known}")
    return {LAYER_KINDS[kind] for kind in types}


def one_window(c: ConfigJson, kinds: set[str], window: int | None) -> int | None:
    """The sliding window of a decoder with these kinds of layers. Raises InputError if it is meant for some layers only."""
    if len(kinds) > 1:
        raise InputError(
            f"{c.where}: some layers have a sliding window and some have not (layer_types); mmjax has one kind only."
        )
    if SLIDING in kinds and window is None:
        raise InputError(f"{c.where}: layer_types has {SLIDING}, but there is no sliding_window.")
    return window if SLIDING in kinds else None


def check_layer_kinds(c: ConfigJson, layers: int, window: int | None) -> None:
    """Refuses layer_types that say another thing than the window, of models in which transformers' layers do not read them and its cache
    does."""
    kinds = layer_kinds(c, layers)
    if kinds and one_window(c, kinds, window) != window:
        raise InputError(
            f"{c.where}: layer_types has {FULL}, but sliding_window is {window}; only one of them can be meant."
        )


def read_window(c: ConfigJson, layers: int) -> int | None:
    """The sliding window of Qwen2 and Qwen3, which may be meant for some layers only: that is refused."""
    given, first = c.number("sliding_window", None), c.number("max_window_layers")
    window = given if c.flag("use_sliding_window") else None
    implied = {FULL} if window is None or first > 0 else set()
    if window is not None and first < layers:
        implied.add(SLIDING)
    return one_window(c, layer_kinds(c, layers) or implied, window)


def write_window(c: DecoderConfig) -> dict[str, Any]:
    """The settings that `read_window` reads."""
    if c.sliding_window is None:
        return {"use_sliding_window": False}
    return {"use_sliding_window": True, "sliding_window": c.sliding_window, "max_window_layers": 0}


def read(c: ConfigJson) -> DecoderConfig:
    decoder = read_decoder(c)
    check_layer_kinds(c, decoder.layers, None)
    bias, mlp_bias = c.flag("attention_bias"), c.flag("mlp_bias")
    return dataclasses.replace(decoder, qkv_bias=bias, output_bias=bias, mlp_bias=mlp_bias)


def write(config: DecoderConfig) -> dict[str, Any]:
    return write_decoder(config) | {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}


def accepts(config: DecoderConfig) -> bool:
    return config.qkv_bias == config.output_bias and not (
        config.query_key_norm or config.sliding_window or config.experts
    )


KEYS = DECODER | ConfigKeys(
    obeyed="attention_bias mlp_bias",
    # transformers' layers do not read it, and its cache of keys and values does.
    refused={"sliding_window": (None,)},
    harmless={"how matrices were split in training": "pretraining_tp"},
)

FAMILY = Family(
    "Llama",
    ("llama",),
    "LlamaForCausalLM",
    "decoder",
    read,
    table,
    write,
    accepts,
    priority=1,  # before Mistral, which has the same form where it has no window
    spellings=SPELLINGS,
    unused=UNUSED,
    gguf=GGUFForm(
        "llama",
        interleaved=True,
        optional_biases=True,
        applies=lambda c: not (c["num_local_experts"] or c["sliding_window"]),
    ),
    keys={"llama": KEYS},
)
