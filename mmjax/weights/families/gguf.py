"""Decoders in GGUF files: llama.cpp's names for settings and tensors, as those of the families."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.errors import InputError
from mmjax.models.attention import frequencies
from mmjax.models.config import DecoderConfig, Llama3Scaling, RopeScaling
from mmjax.weights.config_json import ConfigJson
from mmjax.weights.families.base import Family
from mmjax.weights.families.llama import LLAMA, OURS
from mmjax.weights.families.mistral import MISTRAL
from mmjax.weights.families.mixtral import MIXTRAL
from mmjax.weights.families.qwen2 import QWEN2
from mmjax.weights.families.qwen3 import QWEN3
from mmjax.weights.rules import TRANSPOSED, Interleaved, InterleavedVector, Rule
from mmjax.weights.tensors import TensorSource, quoted

# Architectures, and whether their queries and keys rotate neighbours instead of halves.
ARCHITECTURES = {"llama": True, "qwen2": False, "qwen3": False}

NAMES = (
    (r"^model\.embed_tokens\.", "token_embd."),
    (r"^model\.norm\.", "output_norm."),
    (r"^lm_head\.", "output."),
    (r"^model\.layers\.", "blk."),
    (r"\.input_layernorm\.", ".attn_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn_\1."),
    (r"\.self_attn\.o_proj\.", ".attn_output."),
    (r"\.self_attn\.([qk])_norm\.", r".attn_\1_norm."),
    (r"\.mlp\.(gate|up|down)_proj\.", r".ffn_\1."),
    (r"\.block_sparse_moe\.gate\.", ".ffn_gate_inp."),
)
ROPE_FACTORS = "rope_freqs.weight"
ROPE_TYPES = {"none": "default", "linear": "linear", "yarn": "yarn"}
# What would change the function, with the value at which it does not; YaRN's own are llama.cpp's corrections of its attention factor.
NEUTRAL = {
    "attention.causal": True,
    "attention.scale": 0.0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "rope.scaling.alpha": 0.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
}
# Llama 3.1's and 3.2's own settings, which GGUF files only have as the factors that they make.
LLAMA3_RAMP = (1.0, 4.0, 8192)
LONGEST_HEAD = 4096


def read(source: TensorSource) -> tuple[Family, DecoderConfig]:
    """The family and the config of a GGUF file. Raises InputError if mmjax does not have its architecture."""
    where = str(source.files[0])
    architecture = source.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        shown = quoted(architecture) if isinstance(architecture, str) else "no text"
        raise InputError(
            f"{where}: its architecture is {shown}; of GGUF files mmjax reads {', '.join(ARCHITECTURES)}."
        )
    settings = _settings(source, architecture)
    fields = _fields(source, architecture)
    window = fields.number("attention.sliding_window", 0) or None
    llama = MIXTRAL if settings.get("num_local_experts") else MISTRAL if window else LLAMA
    family = {"llama": llama, "qwen2": QWEN2, "qwen3": QWEN3}[architecture]
    config = family.read(ConfigJson(settings, where))
    assert isinstance(config, DecoderConfig)
    config = dataclasses.replace(config, sliding_window=window)
    if family in (LLAMA, MISTRAL):
        config = dataclasses.replace(config, qkv_bias="blk.0.attn_q.bias" in source.tensors)
    _check(fields, config)
    if ROPE_FACTORS in source.tensors:
        config = dataclasses.replace(config, rope_scaling=_llama3(source, config))
    return family, config


def _fields(source: TensorSource, architecture: str) -> ConfigJson:
    """The fields of an architecture, without its name in front."""
    prefix = f"{architecture}."
    fields = {
        key.removeprefix(prefix): value
        for key, value in source.metadata.items()
        if key.startswith(prefix)
    }
    return ConfigJson(fields, f"{source.files[0]}, {architecture}")


def _check(fields: ConfigJson, config: DecoderConfig) -> None:
    """Refuses what llama.cpp would compute otherwise than mmjax."""
    for key, neutral in NEUTRAL.items():
        fields.must_be(key, neutral)
    for key in ("rope.dimension_count", "attention.value_length"):
        if (count := fields.number(key, config.head_dim)) != config.head_dim:
            raise InputError(
                f"{fields.where}: {key} is {count}, but a head has {config.head_dim} channels; mmjax has whole heads only."
            )
    for key in ("attention.sliding_window_pattern", "rope.dimension_sections"):
        if key in fields and (config.sliding_window or key.startswith("rope")):
            raise InputError(
                f"{fields.where}: {key} is there; mmjax has the same attention in all layers, of text in one dimension."
            )


def tokens(source: TensorSource) -> dict[str, int]:
    """The special tokens that config.json would name."""
    fields = ConfigJson(source.metadata, str(source.files[0]))
    found = {
        role: fields.number(f"tokenizer.ggml.{name}_token_id", None)
        for role, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    return {f"{role}_token_id": value for role, value in found.items() if value is not None}


def _settings(source: TensorSource, architecture: str) -> dict[str, Any]:
    """The fields of the file under the names of config.json; what is absent stays absent, but what has no default must be there."""
    found = _fields(source, architecture)
    fields = found.content
    embedding = source.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise InputError(f"{source.files[0]}: there is no table of embeddings, token_embd.weight.")
    needed = {
        "block_count",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
    }
    if missing := sorted(needed - set(fields)):
        raise InputError(f"{source.files[0]}: the field {architecture}.{missing[0]} is missing.")
    heads = fields["attention.head_count"]
    return {
        "vocab_size": embedding.shape[0],
        "num_hidden_layers": fields["block_count"],
        "hidden_size": fields["embedding_length"],
        "intermediate_size": fields["feed_forward_length"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get("attention.head_count_kv", heads),
        "head_dim": fields.get("attention.key_length"),
        "rms_norm_eps": fields["attention.layer_norm_rms_epsilon"],
        "rope_theta": fields.get("rope.freq_base", 10_000.0),
        "rope_scaling": _scaling(found),
        "max_position_embeddings": fields.get("context_length"),
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "num_local_experts": fields.get("expert_count") or None,
        "num_experts_per_tok": fields.get("expert_used_count"),
    }


def _scaling(fields: ConfigJson) -> dict[str, Any]:
    """The rescaling of rotary positions, as llama.cpp understands it: a factor alone is linear."""
    factor = fields.real("rope.scaling.factor", 0.0) or fields.real("rope.scale_linear", 0.0) or 1.0
    kind = fields.choice("rope.scaling.type", ROPE_TYPES, "linear")
    attention = fields.real("rope.scaling.attn_factor", 1.0)
    if kind != "yarn":
        if attention != 1:
            raise InputError(
                f"{fields.where}: rope.scaling.attn_factor is {attention}, which mmjax has for YaRN only."
            )
        return {"rope_type": kind, "factor": factor} if factor != 1 else {"rope_type": "default"}
    scaling = {
        "rope_type": kind,
        "factor": factor,
        "attention_factor": attention * (0.1 * math.log(factor) + 1 if factor > 1 else 1),
        "beta_fast": fields.real("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": fields.real("rope.scaling.yarn_beta_slow", 1.0),
    }
    original = fields.number("rope.scaling.original_context_length", None)
    return scaling if original is None else scaling | {"original_max_position_embeddings": original}


def _llama3(source: TensorSource, config: DecoderConfig) -> RopeScaling | None:
    """Llama 3.1's rescaling, from the factors by which the file divides the frequencies."""
    where, shape = source.files[0], source.tensors[ROPE_FACTORS].shape
    if config.rope_scaling is not None:
        raise InputError(
            f"{where} rescales rotary positions twice, by {ROPE_FACTORS} and by a field; mmjax does it once."
        )
    if shape != (config.head_dim // 2,) or shape[0] > LONGEST_HEAD:
        raise InputError(
            f"{where}: {ROPE_FACTORS} is {list(shape)}, but a head has {config.head_dim} channels."
        )
    factors = source.read(ROPE_FACTORS)
    if (factors == 1).all():
        return None
    scaling = Llama3Scaling("llama3", float(np.max(factors, initial=1.0)), *LLAMA3_RAMP)
    plain, scaled = (
        frequencies(config.head_dim, config.rope_theta, rope) for rope in (None, scaling)
    )
    if not np.allclose(plain / factors, scaled, rtol=1e-4):
        raise InputError(
            f"{source.files[0]}: {ROPE_FACTORS} is not the rescaling of Llama 3.1, the only one that mmjax knows in this form."
        )
    return scaling


def rules(family: Family, config: DecoderConfig, source: TensorSource) -> list[Rule]:
    """The family's table with llama.cpp's names and layouts."""
    interleaved = ARCHITECTURES[source.metadata["general.architecture"]]
    return [_rule(rule, config, interleaved) for rule in family.rules(config)]


def _rule(rule: Rule, config: DecoderConfig, interleaved: bool) -> Rule:
    heads = {f"{OURS}/attention/query": config.heads, f"{OURS}/attention/key": config.kv_heads}
    module, _, leaf = rule.param_path.rpartition("/")
    if interleaved and module in heads:
        layout = (
            Interleaved(heads[module]) if leaf == "kernel" else InterleavedVector(heads[module])
        )
        rule = dataclasses.replace(rule, layout=layout)
    if "{expert}" in rule.checkpoint_name:  # llama.cpp stacks the experts of a layer
        return dataclasses.replace(
            rule, checkpoint_name=f"blk.{{layer}}.ffn_{leaf}_exps.weight", layout=TRANSPOSED
        )
    return dataclasses.replace(rule, checkpoint_name=renamed(rule.checkpoint_name))


def renamed(name: str) -> str:
    """llama.cpp's name of a tensor, from that of transformers."""
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def unused(names: Mapping[str, Any]) -> set[str]:
    """Tensors that are no parameters."""
    return {ROPE_FACTORS} & set(names)
