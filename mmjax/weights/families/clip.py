"""What the vision encoders of CLIP and SigLIP share.

The vision tower of CLIP (arXiv:2103.00020), alone or in a whole CLIP.
"""

from collections.abc import Mapping
from typing import Any

from mmjax.models.config import Activation, ViTConfig
from mmjax.weights.config_json import ConfigJson
from mmjax.weights.families.base import Family, PartConfig
from mmjax.weights.rules import Patches, Rule, linear, norm

ROOT = "vision_model"
BLOCK = f"{ROOT}.encoder.layers.{{layer}}"
OURS = "vision/layers"
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


def vision_part(c: ConfigJson) -> ConfigJson:
    """The settings of the vision tower, of a config.json of the tower alone or of the whole model."""
    return c.part("vision_config") if "vision_config" in c else c


def read_encoder(
    c: ConfigJson, *, patch_size: int, activation: str, epsilon: float
) -> dict[str, Any]:
    """The settings that both have, by our names; the arguments stand for those that config.json leaves out."""
    c.must_be("num_channels", 3)
    return {
        "image_size": c.number("image_size", 224),
        "patch_size": c.number("patch_size", patch_size),
        "width": c.number("hidden_size", 768),
        "layers": c.number("num_hidden_layers", 12),
        "heads": c.number("num_attention_heads", 12),
        "mlp_width": c.number("intermediate_size", 3072),
        "activation": c.choice("hidden_act", ACTIVATIONS, activation),
        "norm_epsilon": c.real("layer_norm_eps", epsilon),
        "final_norm": True,
    }


def write_encoder(c: ViTConfig) -> dict[str, Any]:
    """The settings that both have."""
    return {
        "hidden_size": c.width,
        "intermediate_size": c.mlp_width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_channels": 3,
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "hidden_act": theirs(ACTIVATIONS, c.activation),
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


def theirs(names: Mapping[str, Activation], ours: Activation) -> str:
    """Their name of an activation."""
    return next(name for name, activation in names.items() if activation == ours)


def table(c: ViTConfig) -> list[Rule]:
    """Patches, positions, blocks and the last norm."""
    rules = [
        *linear(
            "vision/patch",
            f"{ROOT}.embeddings.patch_embedding",
            bias=c.patch_bias,
            layout=Patches(c.patch_size),
        ),
        Rule("vision/position", f"{ROOT}.embeddings.position_embedding.weight"),
        *norm(f"{OURS}/norm_attention", f"{BLOCK}.layer_norm1", bias=True),
        *norm(f"{OURS}/norm_mlp", f"{BLOCK}.layer_norm2", bias=True),
        *linear(f"{OURS}/mlp/up", f"{BLOCK}.mlp.fc1", bias=True),
        *linear(f"{OURS}/mlp/down", f"{BLOCK}.mlp.fc2", bias=True),
    ]
    for ours, name in {
        "query": "q_proj",
        "key": "k_proj",
        "value": "v_proj",
        "output": "out_proj",
    }.items():
        rules += linear(f"{OURS}/attention/{ours}", f"{BLOCK}.self_attn.{name}", bias=True)
    return (
        [*rules, *norm("vision/final_norm", f"{ROOT}.post_layernorm", bias=True)]
        if c.final_norm
        else rules
    )


def is_plain(c: object) -> bool:
    """Whether a config is a vision transformer as both build it."""
    return isinstance(c, ViTConfig) and c.norm == "layer" and not (c.gated_mlp or c.layer_scale)


def read(c: ConfigJson) -> ViTConfig:
    common = read_encoder(vision_part(c), patch_size=32, activation="quick_gelu", epsilon=1e-5)
    return ViTConfig(**common, class_token=True, embedding_norm=True, patch_bias=False)


def rules(c: ViTConfig) -> list[Rule]:
    first = [
        Rule("vision/class_token", f"{ROOT}.embeddings.class_embedding"),
        *norm("vision/embedding_norm", f"{ROOT}.pre_layrnorm", bias=True),  # spelt so in the files
    ]
    return [*first, *table(c)]


def accepts(c: PartConfig) -> bool:
    return (
        isinstance(c, ViTConfig)
        and is_plain(c)
        and c.class_token
        and c.embedding_norm
        and not (c.patch_bias or c.pooling_head)
    )


def images(c: ViTConfig) -> dict[str, Any]:
    return image_settings(c, "CLIPImageProcessor", crop=True)


CLIP = Family(
    "CLIP",
    ("clip_vision_model", "clip"),
    "CLIPVisionModel",
    read,
    write_encoder,
    rules,
    accepts,
    SPELLINGS,
    UNUSED,
    images=images,
)
