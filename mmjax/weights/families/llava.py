"""LLaVA-1.5 (arXiv:2310.03744) as transformers' LlavaForConditionalGeneration: a whole model, whose parts are of the other families."""

import dataclasses
from typing import Any

from mmjax.errors import InputError
from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.mlp import MLPConfig
from mmjax.weights.config_json import ConfigJson
from mmjax.weights.families import clip
from mmjax.weights.families.base import Family, PartConfig
from mmjax.weights.families.clip import CLIP
from mmjax.weights.families.llama import LLAMA
from mmjax.weights.families.mistral import MISTRAL
from mmjax.weights.families.qwen2 import QWEN2
from mmjax.weights.families.siglip import SIGLIP
from mmjax.weights.rules import Rule, linear, prefixed

PROJECTOR = "multi_modal_projector"
TEXT = {family.model_types[0]: family for family in (LLAMA, MISTRAL, QWEN2)}
VISION = {family.model_types[0]: family for family in (CLIP, SIGLIP)}


def read(c: ConfigJson) -> VLMConfig:
    text, vision = c.part("text_config"), c.part("vision_config")
    decoder = text.choice("model_type", TEXT, "llama").read(text)
    encoder = vision.choice("model_type", VISION, "clip_vision_model").read(vision)
    assert isinstance(decoder, DecoderConfig) and isinstance(encoder, ViTConfig)
    _check_strategy(c, encoder)
    c.must_be("multimodal_projector_bias", True)
    connector = MLPConfig(
        "mlp",
        feature_layers=(_layer(c, encoder.layers),),
        hidden_width=decoder.width,
        activation=c.choice("projector_hidden_act", clip.ACTIVATIONS, "gelu"),
    )
    if c.flag(
        "tie_word_embeddings", False
    ):  # of the whole, or of the text model alone: either will do
        decoder = dataclasses.replace(decoder, tie_word_embeddings=True)
    return VLMConfig(encoder, connector, decoder, compute_dtype="float32")


def _check_strategy(c: ConfigJson, encoder: ViTConfig) -> None:
    """ "default" leaves the first feature out, whatever it is, and "full" keeps it; ours are those of all patches and of nothing else."""
    strategy = c.choice(
        "vision_feature_select_strategy", {"default": "default", "full": "full"}, "default"
    )
    if encoder.class_token and strategy == "full":
        raise InputError(
            f'{c.where}: vision_feature_select_strategy is "full", which keeps the class token; mmjax reads patches only.'
        )
    if not encoder.class_token and strategy == "default":
        raise InputError(
            f'{c.where}: vision_feature_select_strategy is "default", which leaves out the first feature, but this encoder has no class '
            'token: it would be a patch. mmjax reads all patches; with such an encoder, "full" says so.'
        )


def _layer(c: ConfigJson, layers: int) -> int:
    """Blocks before the features: hidden_states[k], counted from the end where it is negative."""
    value = c.content.get("vision_feature_layer", -2)
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or not -layers <= value <= layers
        or not value % (layers + 1)
    ):
        raise InputError(
            f"{c.where}: vision_feature_layer is {value}; it must be one layer, from 1 to {layers}, or -1 to {-layers}."
        )
    return value % (layers + 1)


def rules(c: VLMConfig) -> list[Rule]:
    text = next(family for family in TEXT.values() if family.accepts(c.decoder))
    vision = next(family for family in VISION.values() if family.accepts(c.vision))
    return [
        *prefixed(text.rules(c.decoder), "language_model."),
        *prefixed(vision.rules(c.vision), "vision_tower."),
        *linear("connector/up", f"{PROJECTOR}.linear_1", bias=True),
        *linear("connector/down", f"{PROJECTOR}.linear_2", bias=True),
    ]


def write(c: VLMConfig) -> dict[str, Any]:
    raise AssertionError("whole models are written part by part")


def accepts(c: PartConfig) -> bool:
    return False


LLAVA = Family(
    "LLaVA-1.5",
    ("llava",),
    "LlavaForConditionalGeneration",
    read,
    write,
    rules,
    accepts,
    spellings=(
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^(model\.)?vision_tower\.(vision_model\.)?", f"vision_tower.{clip.ROOT}."),
        (rf"^model\.{PROJECTOR}\.", f"{PROJECTOR}."),
    ),
    unused=("*.rotary_emb.inv_freq", "*.position_ids", "image_newline"),
)
