"""The vision tower of SigLIP (arXiv:2303.15343), with or without its pooling head, alone or in a whole SigLIP."""

from typing import Any

from mmjax.models.config import ViTConfig
from mmjax.weights.config_json import ConfigJson
from mmjax.weights.families import clip
from mmjax.weights.families.base import Family, PartConfig
from mmjax.weights.rules import IDENTITY, TRANSPOSED, LeadingOnes, Rule, linear, norm

HEAD = f"{clip.ROOT}.head"
HALF = (0.5, 0.5, 0.5)


def read(c: ConfigJson) -> ViTConfig:
    vision = clip.vision_part(c)
    common = clip.read_encoder(vision, patch_size=16, activation="gelu_pytorch_tanh", epsilon=1e-6)
    return ViTConfig(
        **common,
        class_token=False,
        embedding_norm=False,
        patch_bias=True,
        pooling_head=vision.flag("vision_use_head", True),
        image_mean=HALF,
        image_std=HALF,
    )


def write(c: ViTConfig) -> dict[str, Any]:
    return clip.write_encoder(c) | {"vision_use_head": c.pooling_head}


def rules(c: ViTConfig) -> list[Rule]:
    rules = clip.table(c)
    if not c.pooling_head:
        return rules
    rules.append(Rule("vision/head/probe", f"{HEAD}.probe", LeadingOnes(2)))
    for part, name in enumerate(("query", "key", "value")):  # one matrix holds the three
        rules.append(
            Rule(
                f"vision/head/attention/{name}/kernel",
                f"{HEAD}.attention.in_proj_weight",
                TRANSPOSED,
                part,
                3,
            )
        )
        rules.append(
            Rule(
                f"vision/head/attention/{name}/bias",
                f"{HEAD}.attention.in_proj_bias",
                IDENTITY,
                part,
                3,
            )
        )
    rules += linear("vision/head/attention/output", f"{HEAD}.attention.out_proj", bias=True)
    rules += norm("vision/head/norm", f"{HEAD}.layernorm", bias=True)
    rules += linear("vision/head/mlp/up", f"{HEAD}.mlp.fc1", bias=True)
    return [*rules, *linear("vision/head/mlp/down", f"{HEAD}.mlp.fc2", bias=True)]


def accepts(c: PartConfig) -> bool:
    return (
        isinstance(c, ViTConfig)
        and clip.is_plain(c)
        and c.patch_bias
        and not (c.class_token or c.embedding_norm)
    )


def images(c: ViTConfig) -> dict[str, Any]:
    return clip.image_settings(c, "SiglipImageProcessor", crop=False)


SIGLIP = Family(
    "SigLIP",
    ("siglip_vision_model", "siglip"),
    "SiglipVisionModel",
    read,
    write,
    rules,
    accepts,
    clip.SPELLINGS,
    clip.UNUSED,
    images=images,
)
