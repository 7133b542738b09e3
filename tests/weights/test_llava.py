"""LLaVA with either encoder: which features it reads."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import VLMConfig
from mmjax.models.connectors.mlp import MLPConfig
from mmjax.weights import load_pretrained
from mmjax.weights.families import llava
from mmjax.weights.families.base import find_writer
from mmjax.weights.families.llama import write_decoder
from mmjax.weights.families.siglip import write as write_siglip
from mmjax.weights.rules import tensor_slices
from tests.weights.models import LLAMA, SIGLIP, params_of

CLIP = pathlib.Path(__file__).parents[1] / "parity" / "references" / "pretrained" / "llava"
CONFIG = VLMConfig(
    dataclasses.replace(SIGLIP, pooling_head=False),
    MLPConfig("mlp", feature_layers=(1,), hidden_width=32, activation="gelu"),
    LLAMA,
    compute_dtype="float32",
)


def of_siglip(folder, model=CONFIG, **settings):
    folder.mkdir()
    params = params_of(model)
    tensors = {
        found.name: np.ascontiguousarray(
            found.layout.to_checkpoint(np.asarray(params[found.param_path])[found.index])
        )
        for found in tensor_slices(llava.rules(model), params)
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    vision = write_siglip(CONFIG.vision) | {"model_type": "siglip_vision_model"}
    text = write_decoder(CONFIG.decoder) | {"model_type": "llama"}
    config = {
        "model_type": "llava",
        "text_config": text,
        "vision_config": vision,
        "vision_feature_layer": -2,
    }
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def of_clip(folder, **settings):
    shutil.copytree(CLIP, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def test_an_encoder_without_a_class_token_gives_all_of_its_patches(tmp_path):
    model = load_pretrained(of_siglip(tmp_path / "siglip", vision_feature_select_strategy="full"))
    assert dataclasses.replace(model.config, vision=CONFIG.vision) == dataclasses.replace(
        CONFIG, decoder=model.config.decoder
    )


@pytest.mark.parametrize("settings", [{}, {"vision_feature_select_strategy": "default"}])
def test_without_a_class_token_there_is_nothing_to_remove(settings, tmp_path):
    with pytest.raises(
        InputError,
        match='"default", which removes the first feature, but this encoder has no class token',
    ):
        load_pretrained(of_siglip(tmp_path / "siglip", **settings))


@pytest.mark.parametrize("strategy", ["full", "cls", 7, None])
def test_the_class_token_is_never_read(strategy, tmp_path):
    with pytest.raises(InputError, match="vision_feature_select_strategy is"):
        load_pretrained(of_clip(tmp_path / "clip", vision_feature_select_strategy=strategy))


def test_tied_by_the_config_of_the_whole(tmp_path):
    folder = of_siglip(
        tmp_path / "siglip", vision_feature_select_strategy="full", tie_word_embeddings=True
    )
    found = load_file(folder / "model.safetensors")
    del found["language_model.lm_head.weight"]
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    assert load_pretrained(folder).config.decoder.tie_word_embeddings


FAMILIES = {
    "qwen3": dataclasses.replace(LLAMA, query_key_norm=True),
    "mixtral": dataclasses.replace(LLAMA, experts=2),
    "dinov2": dataclasses.replace(
        CONFIG.vision, activation="gelu", class_token=True, layer_scale=True
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_of_any_family(name, tmp_path):
    """Under the names that the family itself has, and with the spellings that it knows."""
    part = FAMILIES[name]
    which = "vision" if name == "dinov2" else "decoder"
    config = dataclasses.replace(CONFIG, **{which: part})
    family = find_writer(part)
    assert family.model_types[0] == name
    settings = {f"{'vision' if which == 'vision' else 'text'}_config": family.write(part)}
    settings[next(iter(settings))]["model_type"] = name
    strategy = "default" if config.vision.class_token else "full"
    folder = of_siglip(
        tmp_path / "model", config, vision_feature_select_strategy=strategy, **settings
    )
    model = load_pretrained(folder)
    assert getattr(model.config, which).layers == part.layers
    assert [origin.family for origin in model.origins if origin.part == which] == [family.name]
    found = parameters.split(model)[1]
    for path, value in params_of(config).items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
