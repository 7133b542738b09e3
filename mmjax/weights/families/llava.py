"""LLaVA-1.5 (arXiv:2310.03744) as transformers' LlavaForConditionalGeneration: a whole model, whose parts are of other families."""

import dataclasses

from mmjax.errors import InputError
from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.mlp import MLPConfig
from mmjax.weights.families import clip
from mmjax.weights.families.base import ConfigJson, Family, FamilyPart, find_family, find_writer
from mmjax.weights.rules import Rule, linear

PROJECTOR = "multi_modal_projector"
TEXT, VISION = "language_model.", "vision_tower."


def parts(c: ConfigJson) -> tuple[FamilyPart, ...]:
    """The decoder and the encoder, each of whatever family its own config names."""
    text, vision = c.part("text_config"), c.part("vision_config")
    return (
        FamilyPart(find_family(text, "decoder", "llama"), TEXT, text),
        FamilyPart(find_family(vision, "vision", "clip_vision_model"), VISION, vision),
    )


def read(c: ConfigJson) -> VLMConfig:
    decoder, encoder = (part.family.config(part.settings) for part in parts(c))
    assert isinstance(decoder, DecoderConfig) and isinstance(encoder, ViTConfig)
    # "default" removes the first feature, whatever it is, and "full" keeps it; mmjax reads all patches and nothing else.
    strategies = {"default": "default", "full": "full"}
    strategy = c.choice("vision_feature_select_strategy", strategies)
    if encoder.class_token and strategy == "full":
        raise InputError(
            f'{c.where}: vision_feature_select_strategy is "full", which keeps the class token; mmjax reads patches only.'
        )
    if not encoder.class_token and strategy == "default":
        raise InputError(
            f'{c.where}: vision_feature_select_strategy is "default", which removes the first feature, but this encoder has no class '
            'token: it would be a patch. mmjax reads all patches; with such an encoder, "full" says so.'
        )
    # Blocks before the features: hidden_states[k], counted from the end where it is negative.
    layer, layers = c.setting("vision_feature_layer"), encoder.layers
    if (
        not isinstance(layer, int)
        or isinstance(layer, bool)
        or not -layers <= layer <= layers
        or not layer % (layers + 1)
    ):
        raise InputError(
            f"{c.where}: vision_feature_layer is {layer}; it must be one layer, from 1 to {layers}, or -1 to {-layers}."
        )
    c.must_be("multimodal_projector_bias", True)
    connector = MLPConfig(
        "mlp",
        feature_layers=(layer % (layers + 1),),
        hidden_width=decoder.width,
        activation=c.choice("projector_hidden_act", clip.ACTIVATIONS),
    )
    # A head is tied if the config of the whole or that of the text model says so.
    tied = c.flag("tie_word_embeddings") or decoder.tie_word_embeddings
    decoder = dataclasses.replace(decoder, tie_word_embeddings=tied)
    return VLMConfig(encoder, connector, decoder, compute_dtype="float32")


def rules(c: VLMConfig) -> list[Rule]:
    rules: list[Rule] = []
    for prefix, part in ((TEXT, c.decoder), (VISION, c.vision)):
        rules += [
            dataclasses.replace(rule, checkpoint_name=prefix + rule.checkpoint_name)
            for rule in find_writer(part).rules(part)
        ]
    rules += linear("connector/up", f"{PROJECTOR}.linear_1", bias=True)
    return [*rules, *linear("connector/down", f"{PROJECTOR}.linear_2", bias=True)]


FAMILY = Family(
    "LLaVA-1.5",
    ("llava",),
    "LlavaForConditionalGeneration",
    "model",
    read,
    rules,
    # The parts' own spellings and unused tensors come in addition.
    spellings=(
        (r"^model\.language_model\.", TEXT),
        (r"^lm_head\.", f"{TEXT}lm_head."),
        (r"^model\.vision_tower\.", VISION),
        (rf"^model\.{PROJECTOR}\.", f"{PROJECTOR}."),
    ),
    unused=("image_newline",),
    parts=parts,
)
