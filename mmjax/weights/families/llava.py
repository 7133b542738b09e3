"""LLaVA-1.5 (arXiv:2310.03744) as transformers' LlavaForConditionalGeneration: a whole model, whose parts are of other families."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from mmjax.base.huggingface import transformers
from mmjax.errors import InputError
from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.mlp import MLPConfig
from mmjax.typing import Params
from mmjax.weights.config_keys import WHOLE, ConfigKeys
from mmjax.weights.families import clip
from mmjax.weights.families.base import ConfigJson, Family, FamilyPart, find_family, find_writer
from mmjax.weights.rules import Rule, linear

PROJECTOR = "multi_modal_projector"
TEXT, VISION = "language_model.", "vision_tower."


def parts(c: ConfigJson) -> tuple[FamilyPart, ...]:
    """The decoder and the encoder, each of whatever family its own config names."""
    text, vision = (
        c.part(key) if key in c else _absent(c, key) for key in ("text_config", "vision_config")
    )
    return (
        FamilyPart(find_family(text, "decoder", "llama"), TEXT, text),
        FamilyPart(find_family(vision, "vision", "clip_vision_model"), VISION, vision),
    )


def _absent(c: ConfigJson, key: str) -> ConfigJson:
    """What transformers takes for a part of which nothing is said; for an empty one it takes the defaults of the part's own class."""
    spec = transformers().CONFIG_MAPPING["llava"].sub_configs_defaults[key]
    content = spec.init_kwargs | {"model_type": spec.model_type}
    return ConfigJson(content, f"{c.where}, {key} (absent)", notes=c.notes)


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


KEYS = WHOLE | ConfigKeys(
    obeyed="text_config vision_config vision_feature_layer vision_feature_select_strategy projector_hidden_act tie_word_embeddings",
    refused={"multimodal_projector_bias": (True,)},
    harmless={
        "which ids stand for images, and how many: mmjax places visual tokens itself": "image_token_index image_token_id image_seq_length",
        "of the loss": "ignore_index",
    },
)


def accepts(c: VLMConfig) -> bool:
    mlp = c.connector.as_patch_mlp()
    return (
        mlp is not None
        and 0 < mlp.feature_layer <= c.vision.layers
        and mlp.hidden_width == c.decoder.width
    )


def write(c: VLMConfig) -> dict[str, Any]:
    """The settings beside those of the two parts."""
    mlp = c.connector.as_patch_mlp()
    assert mlp is not None
    return {
        "vision_feature_layer": mlp.feature_layer - c.vision.layers - 1,
        "vision_feature_select_strategy": _strategy(c),
        "projector_hidden_act": clip.activation_name(mlp.activation),
        "multimodal_projector_bias": True,
        "image_seq_length": c.vision.patches,
        "tie_word_embeddings": c.decoder.tie_word_embeddings,
    }


def processor_settings(c: VLMConfig) -> dict[str, Any]:
    """A processor_config.json: how many image tokens transformers puts in the place of one."""
    return {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": c.vision.patch_size,
        "vision_feature_select_strategy": _strategy(c),
        "num_additional_image_tokens": int(c.vision.class_token),
    }


def _strategy(c: VLMConfig) -> str:
    return "default" if c.vision.class_token else "full"


def with_image_token(c: VLMConfig, token: int) -> VLMConfig:
    """The config of the same model with a row for this id: transformers looks up the embedding of an image token, too, before it takes the
    visual token in its place."""
    vocabulary = c.decoder.vocabulary
    assert vocabulary is not None
    decoder = dataclasses.replace(c.decoder, vocabulary=max(vocabulary, token + 1))
    return dataclasses.replace(c, decoder=decoder)


def with_rows(params: Params, vocabulary: int) -> Params:
    """The parameters for `with_image_token`. New rows are the mean of the others: so the new token is never the likeliest one."""
    found = dict(params)
    for path, axis in (("decoder/embedding", 0), ("decoder/lm_head/kernel", 1)):
        if path in params and params[path].shape[axis] < vocabulary:
            table = params[path]
            mean = table.astype(jnp.float32).mean(axis, keepdims=True).astype(table.dtype)
            rows = jnp.repeat(mean, vocabulary - table.shape[axis], axis)
            found[path] = jnp.concatenate([jnp.asarray(table), rows], axis)
    return found


FAMILY = Family(
    "LLaVA-1.5",
    ("llava",),
    "LlavaForConditionalGeneration",
    "model",
    read,
    rules,
    write,
    accepts,
    # The parts' own spellings and unused tensors come in addition.
    spellings=(
        (r"^model\.language_model\.", TEXT),
        (r"^lm_head\.", f"{TEXT}lm_head."),
        (r"^model\.vision_tower\.", VISION),
        (rf"^model\.{PROJECTOR}\.", f"{PROJECTOR}."),
    ),
    unused=("image_newline",),
    parts=parts,
    keys={"llava": KEYS},
)
