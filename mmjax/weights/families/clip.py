"""The vision tower of CLIP (arXiv:2103.00020), alone or in a whole CLIP."""

from typing import Any

from mmjax.models.config import ViTConfig
from mmjax.weights.config_json import ConfigJson
from mmjax.weights.families import encoders
from mmjax.weights.families.family import Family, PartConfig
from mmjax.weights.rules import Rule, norm


def read(c: ConfigJson) -> ViTConfig:
    common = encoders.read(encoders.vision_part(c), patch_size=32, activation="quick_gelu", epsilon=1e-5)
    return ViTConfig(**common, class_token=True, embedding_norm=True, patch_bias=False)


def rules(c: ViTConfig) -> list[Rule]:
    first = [
        Rule("vision/class_token", f"{encoders.ROOT}.embeddings.class_embedding"),
        *norm("vision/embedding_norm", f"{encoders.ROOT}.pre_layrnorm", bias=True),  # spelt so in the files
    ]
    return [*first, *encoders.table(c)]


def accepts(c: PartConfig) -> bool:
    return isinstance(c, ViTConfig) and encoders.is_plain(c) and c.class_token and c.embedding_norm and not (c.patch_bias or c.pooling_head)


def pictures(c: ViTConfig) -> dict[str, Any]:
    return encoders.pictures(c, "CLIPImageProcessor", crop=True)


CLIP = Family(
    "CLIP",
    ("clip_vision_model", "clip"),
    "CLIPVisionModel",
    read,
    encoders.write,
    rules,
    accepts,
    encoders.SPELLINGS,
    encoders.UNUSED,
    pictures=pictures,
)
