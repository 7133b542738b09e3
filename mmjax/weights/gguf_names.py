"""Decoders in GGUF files: llama.cpp's settings and tensors, under the names that the families have for them."""

import dataclasses
import math
import re
from typing import Any

import numpy as np

from mmjax.errors import InputError
from mmjax.models.attention import frequencies
from mmjax.models.config import DecoderConfig, Llama3Scaling
from mmjax.weights.families.base import ConfigJson, Family, families
from mmjax.weights.families.llama import LAYERS
from mmjax.weights.rules import TRANSPOSED, Interleaved, InterleavedVector, Rule
from mmjax.weights.tensors import TensorSource, quoted

# Names of transformers, and those of llama.cpp.
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
# Fields that have no default.
NEEDED = (
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
    "block_count",
    "embedding_length",
    "feed_forward_length",
)
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
    """The family and the config of a GGUF file. Raises InputError if mmjax does not have its architecture, or computes it otherwise than
    llama.cpp."""
    where = str(source.files[0])
    architecture = source.metadata.get("general.architecture")
    known = {family.gguf.architecture for family in families("decoder") if family.gguf}
    if not isinstance(architecture, str) or architecture not in known:
        shown = quoted(architecture) if isinstance(architecture, str) else "no text"
        raise InputError(
            f"{where}: its architecture is {shown}; of GGUF files mmjax reads {', '.join(sorted(known))}."
        )
    prefix = f"{architecture}."
    own = {key: value for key, value in source.metadata.items() if key.startswith(prefix)}
    fields = ConfigJson(
        {key.removeprefix(prefix): value for key, value in own.items()}, f"{where}, {architecture}"
    )
    settings = _settings(source, fields, architecture)
    fitting = [
        (family, family.gguf)
        for family in families("decoder")
        if family.gguf
        and family.gguf.architecture == architecture
        and family.gguf.applies(settings)
    ]
    assert len(fitting) == 1, f"{len(fitting)} families apply to this model of {architecture}"
    ((family, form),) = fitting
    # What is absent has the family's default, but for the size of heads, which is then the width over their number.
    given = {key: value for key, value in settings.items() if value is not None}
    config = family.config(ConfigJson({"head_dim": None} | given, where))
    assert isinstance(config, DecoderConfig)
    config = dataclasses.replace(config, sliding_window=settings["sliding_window"])
    if form.optional_biases:
        config = dataclasses.replace(config, qkv_bias="blk.0.attn_q.bias" in source.tensors)
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
    return family, _with_rope_factors(source, config) if ROPE_FACTORS in source.tensors else config


def _settings(source: TensorSource, fields: ConfigJson, architecture: str) -> dict[str, Any]:
    """The fields of the file under the names of config.json. Absent ones stay absent, but those without a default must be there."""
    embedding = source.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise InputError(f"{source.files[0]}: there is no table of embeddings, token_embd.weight.")
    own = fields.content
    for key in NEEDED:
        if key not in own:
            raise InputError(f"{source.files[0]}: the field {architecture}.{key} is missing.")
    heads = own["attention.head_count"]
    settings = {
        "vocab_size": embedding.shape[0],
        "num_hidden_layers": own["block_count"],
        "hidden_size": own["embedding_length"],
        "intermediate_size": own["feed_forward_length"],
        "num_attention_heads": heads,
        "num_key_value_heads": own.get("attention.head_count_kv", heads),
        "head_dim": own.get("attention.key_length"),
        "rms_norm_eps": own["attention.layer_norm_rms_epsilon"],
        "rope_theta": own.get("rope.freq_base", 10_000.0),
        "max_position_embeddings": own.get("context_length"),
        "sliding_window": fields.number("attention.sliding_window", 0) or None,
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "num_local_experts": own.get("expert_count") or None,
        "num_experts_per_tok": own.get("expert_used_count"),
    }
    # The rescaling of rotary positions, as llama.cpp understands it: a factor alone is linear.
    factor = fields.real("rope.scaling.factor", 0.0) or fields.real("rope.scale_linear", 0.0) or 1.0
    kind = fields.choice("rope.scaling.type", ROPE_TYPES, "linear")
    attention = fields.real("rope.scaling.attn_factor", 1.0)
    if kind == "yarn":
        scaling = {
            "rope_type": kind,
            "factor": factor,
            "attention_factor": attention * (0.1 * math.log(factor) + 1 if factor > 1 else 1),
            "beta_fast": fields.real("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": fields.real("rope.scaling.yarn_beta_slow", 1.0),
        }
        original = fields.number("rope.scaling.original_context_length", None)
        if original is not None:
            scaling["original_max_position_embeddings"] = original
    elif attention != 1:
        raise InputError(
            f"{fields.where}: rope.scaling.attn_factor is {attention}, which mmjax has for YaRN only."
        )
    else:
        scaling = {"rope_type": "default"}
        if factor != 1:
            scaling = {"rope_type": kind, "factor": factor}
    return settings | {"rope_scaling": scaling}


def _with_rope_factors(source: TensorSource, config: DecoderConfig) -> DecoderConfig:
    """The config with Llama 3.1's rescaling, from the factors by which the file divides the frequencies."""
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
        return config
    scaling = Llama3Scaling("llama3", float(np.max(factors, initial=1.0)), *LLAMA3_RAMP)
    plain, scaled = (
        frequencies(config.head_dim, config.rope_theta, rope) for rope in (None, scaling)
    )
    if not np.allclose(plain / factors, scaled, rtol=1e-4):
        raise InputError(
            f"{where}: {ROPE_FACTORS} is not the rescaling of Llama 3.1, the only one that mmjax knows in this form."
        )
    return dataclasses.replace(config, rope_scaling=scaling)


def rules(family: Family, config: DecoderConfig) -> list[Rule]:
    """The family's table with llama.cpp's names and layouts."""
    assert family.gguf is not None
    heads = {f"{LAYERS}/attention/query": config.heads, f"{LAYERS}/attention/key": config.kv_heads}
    found = []
    for rule in family.rules(config):
        module, _, leaf = rule.param_path.rpartition("/")
        name, layout = rule.checkpoint_name, rule.layout
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        if family.gguf.interleaved and module in heads:
            form = Interleaved if leaf == "kernel" else InterleavedVector
            layout = form(heads[module])
        if "{expert}" in name:  # llama.cpp has the experts of a layer in one tensor
            name, layout = f"blk.{{layer}}.ffn_{leaf}_exps.weight", TRANSPOSED
        found.append(dataclasses.replace(rule, checkpoint_name=name, layout=layout))
    return found


def special_tokens(source: TensorSource) -> dict[str, Any]:
    """The special tokens that config.json would name. Turns and messages have ends of their own in some models: then it is a list."""
    fields = ConfigJson(source.metadata, str(source.files[0]))
    found = {
        role: fields.number(f"tokenizer.ggml.{name}_token_id", None)
        for role, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    named: dict[str, Any] = {
        f"{role}_token_id": value for role, value in found.items() if value is not None
    }
    ends = (
        fields.number(f"tokenizer.ggml.{name}_token_id", None) for name in ("eos", "eot", "eom")
    )
    distinct = list(dict.fromkeys(end for end in ends if end is not None))
    return named | ({"eos_token_id": distinct} if len(distinct) > 1 else {})
