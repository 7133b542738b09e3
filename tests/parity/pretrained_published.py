"""The recorded checkpoints with the settings and tensor names of the time before transformers 5. For record_pretrained.py."""

import json
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

Config = dict[str, object]
Tensors = dict[str, torch.Tensor]


def older(config: Config, *, drop: tuple[str, ...] = (), kind_key: str = "rope_type") -> Config:
    """Settings as older files have them: theta and scaling of rotary positions apart, `torch_dtype`, and without what came later."""
    config = {key: value for key, value in config.items() if key not in drop} | {
        "transformers_version": "4.38.0"
    }
    config["torch_dtype"] = config.pop("dtype", "float32")
    if "rope_parameters" in config:
        rope = dict(config.pop("rope_parameters"))
        config["rope_theta"] = rope.pop("rope_theta")
        kind = rope.pop("rope_type")
        config["rope_scaling"] = None if kind == "default" else {kind_key: kind, **rope}
    return config


def llama_1(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """Few settings, and the frequencies of every layer among the tensors."""
    unsaid = (
        "num_key_value_heads",
        "head_dim",
        "attention_bias",
        "mlp_bias",
        "attention_dropout",
        "pretraining_tp",
    )
    config = older(config, drop=unsaid)
    assert config.pop("rope_theta") == 10_000.0 and config.pop("rope_scaling") is None
    width = config["hidden_size"] // config["num_attention_heads"]
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2) / width)
    return config, tensors | {
        f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": frequencies.clone()
        for layer in range(2)
    }


def settings_only(
    *drop: str, kind_key: str = "rope_type"
) -> Callable[[Config, Tensors], tuple[Config, Tensors]]:
    return lambda config, tensors: (older(config, drop=drop, kind_key=kind_key), tensors)


def inside(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """A vision tower under the name that it has in the model of images and text; CLIP's with the buffer of its positions."""
    tensors = {f"vision_model.{name}": value for name, value in tensors.items()}
    return older(config), _with_positions(tensors)


def whole(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """CLIP, which had buffers of positions too, and a second spelling of its settings."""
    parts = {f"{part}_config_dict": None for part in ("text", "vision")}
    return older(config) | parts, _with_positions(tensors)


def _with_positions(tensors: Tensors) -> Tensors:
    """With the positions 0, 1, ... that CLIP's older checkpoints have beside each of its tables."""
    if "vision_model.embeddings.class_embedding" not in tensors:
        return tensors
    tables = {
        name: len(value)
        for name, value in tensors.items()
        if name.endswith("embeddings.position_embedding.weight")
    }
    return tensors | {
        name.replace("embedding.weight", "ids"): torch.arange(length)[None]
        for name, length in tables.items()
    }


def llava(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """LLaVA-1.5: another module stands around the tower."""
    text = older(
        config["text_config"],
        drop=("attention_bias", "attention_dropout", "mlp_bias", "pretraining_tp"),
    )
    config = older(config, drop=("multimodal_projector_bias", "tie_word_embeddings"))
    config |= {"text_config": text, "ignore_index": -100, "vocab_size": text["vocab_size"]}
    return config, {
        name.replace("vision_tower.", "vision_tower.vision_model."): value
        for name, value in tensors.items()
    }


PUBLISHED: dict[str, Callable[[Config, Tensors], tuple[Config, Tensors]]] = {
    "llama_plain": llama_1,
    "llama_llama3": settings_only(),
    "llama_linear": settings_only("head_dim", "num_key_value_heads", kind_key="type"),
    "llama_dynamic": settings_only("attention_bias", "mlp_bias", kind_key="type"),
    "mistral_window": settings_only("head_dim"),
    "qwen2_tied": settings_only("layer_types"),
    "qwen2_yarn": settings_only("layer_types", kind_key="type"),
    "qwen2_window": settings_only("layer_types"),
    "qwen3": settings_only("layer_types"),
    "mixtral": settings_only("head_dim"),
    "clip_vision": inside,
    "clip_whole": whole,
    "siglip_vision": inside,
    "dinov2": settings_only(
        "apply_layernorm",
        "out_features",
        "out_indices",
        "stage_names",
        "reshape_hidden_states",
        "use_mask_token",
    ),
    "llava": llava,
}
UNREAD = ("rotary_emb.inv_freq", "position_ids")  # older files have these; they can be computed
UNSAID = {"transformers_version", "_name_or_path", "dtype", "torch_dtype", "type"}


def publish(output: pathlib.Path, name: str) -> None:
    """Writes the folder NAME_published from the folder NAME, and asserts that transformers makes the same model of both."""
    source, target = output / name, output / f"{name}_published"
    target.mkdir()
    config = json.loads((source / "config.json").read_text())
    config, tensors = PUBLISHED[name](config, load_file(source / "model.safetensors"))
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(
        {key: value.contiguous() for key, value in tensors.items()},
        target / "model.safetensors",
        metadata={"format": "pt"},
    )
    if (source / "preprocessor_config.json").exists():
        shutil.copy(source / "preprocessor_config.json", target)
    _assert_same(source, target, getattr(transformers, config["architectures"][0]))


def _assert_same(source: pathlib.Path, target: pathlib.Path, kind: type) -> None:
    own, other = (
        kind.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
        for folder in (source, target)
    )
    for _, information in (own, other):
        assert not information["missing_keys"] and not information["mismatched_keys"], information
        assert all(key.endswith(UNREAD) for key in information["unexpected_keys"]), information
    before, after = (model.state_dict() for model, _ in (own, other))
    assert before.keys() == after.keys()
    for key, value in before.items():
        np.testing.assert_array_equal(after[key].numpy(), value.numpy(), err_msg=key)
    before, after = (_flat(model.config.to_dict()) for model, _ in (own, other))
    differing = {
        key: (value, after.get(key)) for key, value in before.items() if after.get(key) != value
    }
    assert not differing, (target.name, differing)


def _flat(config: Config) -> Config:
    """Settings by dotted name, without those that shape nothing."""
    flat: Config = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": inside for inner, inside in _flat(value).items()}
        elif key not in UNSAID:
            flat[key] = value
    return flat
