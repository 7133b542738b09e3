"""The vision tower of SigLIP (arXiv:2303.15343), with or without its pooling head, alone or in a whole SigLIP."""

from typing import Any

from mmjax.models.config import ViTConfig
from mmjax.weights.config_keys import WHOLE, ConfigKeys
from mmjax.weights.families import clip
from mmjax.weights.families.base import ConfigJson, Family
from mmjax.weights.rules import IDENTITY, TRANSPOSED, LeadingOnes, Rule, linear, norm

HEAD = f"{clip.ROOT}.head"
HALF = (0.5, 0.5, 0.5)


def read(c: ConfigJson) -> ViTConfig:
    if c.content.get("model_type") == "siglip":
        return clip.encoder_of(c, "vision_config", FAMILY)
    return ViTConfig(
        **clip.read_encoder(c),
        mlp_width=c.number("intermediate_size"),
        class_token=False,
        embedding_norm=False,
        patch_bias=True,
        pooling_head=c.flag("vision_use_head"),
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
        path, projection = f"vision/head/attention/{name}", f"{HEAD}.attention.in_proj"
        rules.append(Rule(f"{path}/kernel", f"{projection}_weight", TRANSPOSED, part, 3))
        rules.append(Rule(f"{path}/bias", f"{projection}_bias", IDENTITY, part, 3))
    rules += linear("vision/head/attention/output", f"{HEAD}.attention.out_proj", bias=True)
    rules += norm("vision/head/norm", f"{HEAD}.layernorm", bias=True)
    rules += linear("vision/head/mlp/up", f"{HEAD}.mlp.fc1", bias=True)
    return [*rules, *linear("vision/head/mlp/down", f"{HEAD}.mlp.fc2", bias=True)]


def accepts(c: ViTConfig) -> bool:
    return clip.has_form(c) and c.patch_bias and not (c.class_token or c.embedding_norm)


def images(c: ViTConfig) -> dict[str, Any]:
    return clip.image_settings(c, "SiglipImageProcessor", crop=False)


KEYS = clip.KEYS | ConfigKeys(obeyed="vision_use_head")

FAMILY = Family(
    "SigLIP",
    ("siglip_vision_model", "siglip"),
    "SiglipVisionModel",
    "vision",
    read,
    rules,
    write,
    accepts,
    spellings=clip.SPELLINGS,
    unused=clip.UNUSED,
    images=images,
    keys={"siglip_vision_model": KEYS, "siglip": WHOLE},
)
