"""What the decoders of all families share: Llama's table of tensors, and rotary positions in config.json.

Llama 1, 2 and 3 (arXiv:2302.13971, arXiv:2307.09288, arXiv:2407.21783) and what has its form: Vicuna, SmolLM2.
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
from mmjax.weights.config_json import ConfigJson
from mmjax.weights.families.base import Family, PartConfig
from mmjax.weights.rules import Rule, linear, norm
from mmjax.weights.tensors import quoted

BLOCK = "model.layers.{layer}"
OURS = "decoder/layers"
SPELLINGS = (
    (r"^(embed_tokens|layers|norm)\.", r"model.\1."),
)  # a model that was saved without its head
UNUSED = ("*.rotary_emb.inv_freq",)


def table(config: DecoderConfig) -> list[Rule]:
    """The tensors of a Llama-like decoder with one MLP in each block."""
    return [
        *frame(config),
        *attention(config),
        *(rule for name in ("gate", "up", "down") for rule in _mlp(config, name)),
    ]


def _mlp(config: DecoderConfig, name: str) -> list[Rule]:
    return list(linear(f"{OURS}/mlp/{name}", f"{BLOCK}.mlp.{name}_proj", bias=config.mlp_bias))


def frame(config: DecoderConfig) -> list[Rule]:
    """Embeddings, norms and head."""
    rules = [
        Rule("decoder/embedding", "model.embed_tokens.weight"),
        *norm("decoder/norm", "model.norm"),
    ]
    rules += norm(f"{OURS}/norm_attention", f"{BLOCK}.input_layernorm")
    rules += norm(f"{OURS}/norm_mlp", f"{BLOCK}.post_attention_layernorm")
    return rules if config.tie_word_embeddings else [*rules, *linear("decoder/lm_head", "lm_head")]


def attention(config: DecoderConfig) -> list[Rule]:
    """Projections, and the norms of queries and keys."""
    biases = {
        "query": config.qkv_bias,
        "key": config.qkv_bias,
        "value": config.qkv_bias,
        "output": config.output_bias,
    }
    rules: list[Rule] = []
    for name, bias in biases.items():
        rules += linear(f"{OURS}/attention/{name}", f"{BLOCK}.self_attn.{name[0]}_proj", bias=bias)
    if config.query_key_norm:
        rules += norm(f"{OURS}/attention/query_norm", f"{BLOCK}.self_attn.q_norm")
        rules += norm(f"{OURS}/attention/key_norm", f"{BLOCK}.self_attn.k_norm")
    return rules


def read_decoder(
    c: ConfigJson,
    *,
    vocabulary: int,
    width: int,
    layers: int = 32,
    heads: int = 32,
    kv_heads: int | None,
    head_dim: int | None = None,
    mlp_width: int,
    epsilon: float = 1e-6,
    theta: float = 10_000.0,
    context: int,
) -> DecoderConfig:
    """The settings that all have; the arguments stand for those that config.json leaves out, as transformers understands them."""
    c.must_be("hidden_act", "silu")
    width, heads = c.number("hidden_size", width), c.number("num_attention_heads", heads)
    if not heads:
        raise c.wrong("num_attention_heads", 0, "positive")
    context = c.number("max_position_embeddings", context)
    return DecoderConfig(
        vocabulary=c.number("vocab_size", vocabulary),
        width=width,
        layers=c.number("num_hidden_layers", layers),
        heads=heads,
        # transformers takes an explicit null for "as many as heads"; where the setting is absent the family's own default counts
        kv_heads=c.number(
            "num_key_value_heads",
            kv_heads if kv_heads and "num_key_value_heads" not in c.content else heads,
        ),
        head_dim=c.number(
            "head_dim", head_dim if head_dim and "head_dim" not in c.content else width // heads
        ),
        mlp_width=c.number("intermediate_size", mlp_width),
        rope_theta=_rope_settings(c).real("rope_theta", c.real("rope_theta", theta)),
        rope_scaling=_scaling(c, context),
        norm_epsilon=c.real("rms_norm_eps", epsilon),
        context_length=context,
        tie_word_embeddings=c.flag("tie_word_embeddings", False),
    )


def write_decoder(c: DecoderConfig) -> dict[str, Any]:
    """The settings that all have, in the form that older versions of transformers read, too."""
    return {
        "vocab_size": c.vocabulary,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.mlp_width,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_epsilon,
        "max_position_embeddings": _length_of(c),
        "rope_theta": c.rope_theta,
        "rope_scaling": _scaling_json(c.rope_scaling),
        "tie_word_embeddings": c.tie_word_embeddings,
    }


def window(c: ConfigJson, layers: int) -> int | None:
    """The sliding window of Qwen2 and Qwen3, which may be meant for some layers only: that is refused."""
    if not c.flag("use_sliding_window", False):
        return None
    types = _layer_types(c, layers)
    if types == {"full_attention"}:
        return None
    if types != {"sliding_attention"}:
        raise InputError(
            f"{c.where}: some layers have a sliding window and some have not (layer_types); mmjax has one kind only."
        )
    return c.number("sliding_window", 4096)


def _layer_types(c: ConfigJson, layers: int) -> set[str]:
    """What kinds of layers there are."""
    first, types = c.number("max_window_layers", 28), c.content.get("layer_types")
    if types is None:
        return {
            kind
            for kind, some in (("full_attention", first > 0), ("sliding_attention", first < layers))
            if some
        }
    known = ("full_attention", "sliding_attention")
    if (
        not isinstance(types, list)
        or len(types) != layers
        or not all(kind in known for kind in types)
    ):
        raise c.wrong("layer_types", types, f"a list of {layers} texts, each {' or '.join(known)}")
    return set(types)


def window_json(c: DecoderConfig) -> dict[str, Any]:
    """The settings that `window` reads."""
    if c.sliding_window is None:
        return {"use_sliding_window": False}
    return {"use_sliding_window": True, "sliding_window": c.sliding_window, "max_window_layers": 0}


def _length_of(c: DecoderConfig) -> int:
    if isinstance(c.rope_scaling, DynamicScaling):  # which transformers knows by no other name
        return c.rope_scaling.original_length
    # from others, transformers reads nothing but the length of tables that mmjax does not know either
    return c.context_length or getattr(c.rope_scaling, "original_length", 0) or 4096


def _rope_settings(c: ConfigJson) -> ConfigJson:
    """The older form, where it is there, counts alone: so transformers understands it."""
    older = c.part("rope_scaling")
    settings = older if older.content else c.part("rope_parameters")
    for key, value in settings.content.items():
        if isinstance(value, Mapping):
            raise InputError(
                f"{settings.where}: {quoted(key)} has settings of its own; mmjax has the same rotary positions in all layers."
            )
    return settings


def _scaling(c: ConfigJson, context: int) -> RopeScaling | None:
    s = _rope_settings(c)
    kind = s.text("rope_type", s.text("type", "default"))
    original = c.number(
        "original_max_position_embeddings", s.number("original_max_position_embeddings", context)
    )
    if s.real("partial_rotary_factor", c.real("partial_rotary_factor", 1.0)) != 1.0:
        raise InputError(
            f"{c.where}: partial_rotary_factor is not 1; mmjax rotates whole heads only."
        )
    match kind:
        case "default":
            return None
        case "linear":
            return LinearScaling("linear", s.real("factor"))
        case "dynamic":
            return DynamicScaling("dynamic", s.real("factor"), context)
        case "llama3":
            return Llama3Scaling(
                "llama3",
                s.real("factor"),
                s.real("low_freq_factor"),
                s.real("high_freq_factor"),
                original,
            )
        case "yarn":
            return _yarn(s, original, context)
    raise InputError(
        f"{s.where}: rope_type is {quoted(kind)}; mmjax knows default, linear, dynamic, llama3 and yarn."
    )


def _yarn(s: ConfigJson, original: int, context: int) -> YarnScaling:
    factor = s.real("factor", context / max(original, 1))
    return YarnScaling(
        "yarn",
        factor,
        original,
        attention_factor=s.real("attention_factor", _attention_factor(s, factor)),
        beta_fast=s.real("beta_fast", 32.0),
        beta_slow=s.real("beta_slow", 1.0),
        truncate=s.flag("truncate", True),
    )


def _attention_factor(s: ConfigJson, factor: float) -> float:
    """arXiv:2309.00071, equation 22; DeepSeek's two settings take it apart."""

    def of(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    scale, all_dim = s.real("mscale", 0.0), s.real("mscale_all_dim", 0.0)
    return of(scale) / of(all_dim) if scale and all_dim else of(1.0)


def _scaling_json(scaling: RopeScaling | None) -> dict[str, Any] | None:
    match scaling:
        case None:
            return None
        case LinearScaling() | DynamicScaling():
            return {"rope_type": scaling.kind, "factor": scaling.factor}
        case Llama3Scaling():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.original_length,
            }
        case YarnScaling():
            return {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_length,
                "attention_factor": scaling.attention_factor,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "truncate": scaling.truncate,
            }


def read(c: ConfigJson) -> DecoderConfig:
    config = read_decoder(
        c, vocabulary=32_000, width=4096, mlp_width=11_008, kv_heads=None, context=2048
    )
    bias = c.flag("attention_bias", False)
    return dataclasses.replace(
        config, qkv_bias=bias, output_bias=bias, mlp_bias=c.flag("mlp_bias", False)
    )


def write(config: DecoderConfig) -> dict[str, Any]:
    return write_decoder(config) | {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}


def accepts(config: PartConfig) -> bool:
    return (
        isinstance(config, DecoderConfig)
        and config.qkv_bias == config.output_bias
        and not (config.query_key_norm or config.sliding_window or config.experts)
    )


LLAMA = Family(
    "Llama", ("llama",), "LlamaForCausalLM", read, write, table, accepts, SPELLINGS, UNUSED
)
