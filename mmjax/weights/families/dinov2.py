"""DINOv2 (arXiv:2304.07193)."""

from typing import Any

from mmjax.errors import InputError
from mmjax.models.config import ViTConfig
from mmjax.weights.config_keys import ENCODER, TRAINING, ConfigKeys
from mmjax.weights.families import clip
from mmjax.weights.families.base import ConfigJson, Family
from mmjax.weights.rules import LeadingOnes, Patches, Rule, linear, norm

BLOCK = "encoder.layer.{layer}"
LAYERS = "vision/layers"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def mlp_width(width: int, ratio: float, gated: bool) -> int:
    """A gated MLP has three matrices instead of two, and so two thirds of the width, in multiples of 8."""
    hidden = int(width * ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden


def read(c: ConfigJson) -> ViTConfig:
    gated = c.flag("use_swiglu_ffn")
    return ViTConfig(
        **clip.read_encoder(c),
        mlp_width=mlp_width(c.number("hidden_size"), c.real("mlp_ratio"), gated),
        class_token=True,
        embedding_norm=False,
        patch_bias=True,
        gated_mlp=gated,
        layer_scale=True,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )


def write(c: ViTConfig) -> dict[str, Any]:
    # transformers reads whole numbers only; of several with the same rounded width, that of the published models is written.
    fitting = (
        ratio
        for ratio in (4, *range(1, 65))
        if mlp_width(c.width, ratio, c.gated_mlp) == c.mlp_width
    )
    ratio = next(fitting, None)
    if ratio is None:
        raise InputError(
            f"DINOv2 has no MLP of width {c.mlp_width} for a model of width {c.width}."
        )
    settings = clip.write_encoder(c)
    del settings["intermediate_size"]
    return settings | {
        "mlp_ratio": ratio,
        "use_swiglu_ffn": c.gated_mlp,
        "qkv_bias": True,
        "use_mask_token": False,
    }


def rules(c: ViTConfig) -> list[Rule]:
    rules = [
        Rule("vision/class_token", "embeddings.cls_token", LeadingOnes(2)),
        Rule("vision/position", "embeddings.position_embeddings", LeadingOnes(1)),
        *linear(
            "vision/patch",
            "embeddings.patch_embeddings.projection",
            bias=True,
            layout=Patches(c.patch_size),
        ),
        *norm(f"{LAYERS}/norm_attention", f"{BLOCK}.norm1", bias=True),
        *norm(f"{LAYERS}/norm_mlp", f"{BLOCK}.norm2", bias=True),
        Rule(f"{LAYERS}/scale_attention", f"{BLOCK}.layer_scale1.lambda1"),
        Rule(f"{LAYERS}/scale_mlp", f"{BLOCK}.layer_scale2.lambda1"),
        *linear(f"{LAYERS}/attention/output", f"{BLOCK}.attention.output.dense", bias=True),
    ]
    if c.gated_mlp:
        rules += linear(f"{LAYERS}/mlp/down", f"{BLOCK}.mlp.weights_out", bias=True)
        for part, name in enumerate(("gate", "up")):  # one matrix holds the two
            rules += linear(
                f"{LAYERS}/mlp/{name}", f"{BLOCK}.mlp.weights_in", bias=True, part=part, parts=2
            )
    else:
        rules += linear(f"{LAYERS}/mlp/up", f"{BLOCK}.mlp.fc1", bias=True)
        rules += linear(f"{LAYERS}/mlp/down", f"{BLOCK}.mlp.fc2", bias=True)
    for name in ("query", "key", "value"):
        rules += linear(
            f"{LAYERS}/attention/{name}", f"{BLOCK}.attention.attention.{name}", bias=True
        )
    if c.final_norm:
        rules += norm("vision/final_norm", "layernorm", bias=True)
    return rules


def accepts(c: ViTConfig) -> bool:
    return (
        c.norm == "layer"
        and c.layer_scale
        and c.patch_bias
        and c.class_token
        and not (c.embedding_norm or c.pooling_head)
    )


def images(c: ViTConfig) -> dict[str, Any]:
    return clip.image_settings(c, "BitImageProcessor", crop=True)


KEYS = ENCODER | ConfigKeys(
    obeyed="mlp_ratio use_swiglu_ffn",
    refused={"qkv_bias": (True,)},
    harmless={
        TRAINING: "hidden_dropout_prob attention_probs_dropout_prob drop_path_rate layerscale_value use_mask_token",
        "which features a backbone hands over, and in which shape": "apply_layernorm reshape_hidden_states out_features out_indices "
        "_out_features _out_indices stage_names",
    },
)

FAMILY = Family(
    "DINOv2",
    ("dinov2",),
    "Dinov2Model",
    "vision",
    read,
    rules,
    write,
    accepts,
    spellings=((r"^dinov2\.", ""),),
    # A token of its pre-training, and a head for classes.
    unused=("embeddings.mask_token", "classifier.*"),
    images=images,
    keys={"dinov2": KEYS},
)
