"""The vision tower of CLIP (arXiv:2103.00020), alone or in a whole CLIP.

SigLIP's encoder is of the same form, and DINOv2's settings have some of the same names: they begin with what stands here.
"""

from typing import Any

from mmjax.models.config import Activation, ViTConfig
from mmjax.weights.config_keys import ENCODER, WHOLE, ConfigKeys
from mmjax.weights.families.base import ConfigJson, Family
from mmjax.weights.rules import Patches, Rule, linear, norm

ROOT = "vision_model"
BLOCK = f"{ROOT}.encoder.layers.{{layer}}"
LAYERS = "vision/layers"
ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
}
SPELLINGS = ((r"^(embeddings|encoder|pre_layrnorm|post_layernorm|head)\.", rf"{ROOT}.\1."),)
UNUSED = (
    "text_model.*",
    "visual_projection.*",
    "text_projection.*",
    "logit_scale",
    "logit_bias",
    "*.position_ids",
)


def encoder_of(whole: ConfigJson, key: str, family: Family) -> ViTConfig:
    """The encoder of a whole model, whose class of transformers is that of the family whichever model_type its own settings name."""
    part = whole.part(key)
    content = {**part.content, "model_type": family.model_types[0]}
    config = family.config(ConfigJson(content, part.where, notes=whole.notes))
    assert isinstance(config, ViTConfig)
    return config


def read_encoder(c: ConfigJson) -> dict[str, Any]:
    """The settings that encoders have, by the names of mmjax."""
    width, heads = c.number("hidden_size"), c.number("num_attention_heads")
    c.must_be("head_dim", None, width // max(heads, 1))
    return {
        "image_size": c.number("image_size"),
        "patch_size": c.number("patch_size"),
        "width": width,
        "layers": c.number("num_hidden_layers"),
        "heads": heads,
        "activation": c.choice("hidden_act", ACTIVATIONS),
        "norm_epsilon": c.real("layer_norm_eps"),
        "final_norm": True,
    }


def activation_name(activation: str) -> str:
    """What transformers calls it."""
    return next(name for name, own in ACTIVATIONS.items() if own == activation)


def write_encoder(c: ViTConfig) -> dict[str, Any]:
    """The settings that CLIP and SigLIP have, by the names of transformers."""
    return {
        "hidden_size": c.width,
        "intermediate_size": c.mlp_width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_channels": 3,
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "hidden_act": activation_name(c.activation),
        "layer_norm_eps": c.norm_epsilon,
    }


def image_settings(c: ViTConfig, processor: str, *, crop: bool) -> dict[str, Any]:
    """A preprocessor_config.json: images brought to image_size, bicubic, and normalised.

    Args:
        processor: the class of transformers; crop: it keeps the aspect and cuts out the middle, or else it stretches.
    """
    square = {"height": c.image_size, "width": c.image_size}
    size = (
        {"size": {"shortest_edge": c.image_size}, "do_center_crop": True, "crop_size": square}
        if crop
        else {"size": square}
    )
    return size | {
        "image_processor_type": processor,
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(c.image_mean),
        "image_std": list(c.image_std),
    }


def table(c: ViTConfig) -> list[Rule]:
    """The tensors that CLIP and SigLIP have: patches, positions, blocks and the last norm."""
    rules = [
        *linear(
            "vision/patch",
            f"{ROOT}.embeddings.patch_embedding",
            bias=c.patch_bias,
            layout=Patches(c.patch_size),
        ),
        Rule("vision/position", f"{ROOT}.embeddings.position_embedding.weight"),
        *norm(f"{LAYERS}/norm_attention", f"{BLOCK}.layer_norm1", bias=True),
        *norm(f"{LAYERS}/norm_mlp", f"{BLOCK}.layer_norm2", bias=True),
        *linear(f"{LAYERS}/mlp/up", f"{BLOCK}.mlp.fc1", bias=True),
        *linear(f"{LAYERS}/mlp/down", f"{BLOCK}.mlp.fc2", bias=True),
    ]
    for name, projection in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "out")):
        rules += linear(
            f"{LAYERS}/attention/{name}", f"{BLOCK}.self_attn.{projection}_proj", bias=True
        )
    if c.final_norm:
        rules += norm("vision/final_norm", f"{ROOT}.post_layernorm", bias=True)
    return rules


def has_form(c: ViTConfig) -> bool:
    """Whether a config is a vision transformer as both CLIP and SigLIP build it."""
    return c.norm == "layer" and not (c.gated_mlp or c.layer_scale)


def read(c: ConfigJson) -> ViTConfig:
    if c.content.get("model_type") == "clip":
        # What older versions wrote counts before the other, and all of it.
        older = c.setting("vision_config_dict", None) is not None
        return encoder_of(c, "vision_config_dict" if older else "vision_config", FAMILY)
    return ViTConfig(
        **read_encoder(c),
        mlp_width=c.number("intermediate_size"),
        class_token=True,
        embedding_norm=True,
        patch_bias=False,
    )


def rules(c: ViTConfig) -> list[Rule]:
    first = [
        Rule("vision/class_token", f"{ROOT}.embeddings.class_embedding"),
        *norm("vision/embedding_norm", f"{ROOT}.pre_layrnorm", bias=True),  # spelt so in the files
    ]
    return [*first, *table(c)]


def accepts(c: ViTConfig) -> bool:
    return (
        has_form(c) and c.class_token and c.embedding_norm and not (c.patch_bias or c.pooling_head)
    )


def images(c: ViTConfig) -> dict[str, Any]:
    return image_settings(c, "CLIPImageProcessor", crop=True)


KEYS = ENCODER | ConfigKeys(
    obeyed="intermediate_size",
    # transformers reads what is within with one of its classes, and what stands beside it with another.
    refused={"vision_config": (None,), "vision_config_dict": (None,)},
)

FAMILY = Family(
    "CLIP",
    ("clip_vision_model", "clip"),
    "CLIPVisionModel",
    "vision",
    read,
    rules,
    write_encoder,
    accepts,
    spellings=SPELLINGS,
    unused=UNUSED,
    images=images,
    keys={"clip_vision_model": KEYS, "clip": WHOLE | ConfigKeys(obeyed="vision_config_dict")},
)
