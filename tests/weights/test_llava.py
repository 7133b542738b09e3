"""LLaVA with either encoder: which features it reads."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmjax.errors import InputError
from mmjax.models.config import VLMConfig
from mmjax.models.connectors.mlp import MLPConfig
from mmjax.weights import load_pretrained
from mmjax.weights.families import LLAVA
from mmjax.weights.families.llama import write_decoder
from mmjax.weights.families.siglip import write as write_siglip
from mmjax.weights.rules import pieces
from tests.weights.models import LLAMA, SIGLIP, params_of

CLIP = pathlib.Path(__file__).parents[1] / "parity" / "references" / "pretrained" / "llava"
CONFIG = VLMConfig(
    dataclasses.replace(SIGLIP, pooling_head=False),
    MLPConfig("mlp", feature_layers=(1,), hidden_width=32, activation="gelu"),
    LLAMA,
    compute_dtype="float32",
)


def of_siglip(folder, **settings):
    folder.mkdir()
    params = params_of(CONFIG)
    found = pieces(LLAVA.rules(CONFIG), params)
    tensors = {
        piece.name: np.array(piece.layout.to_theirs(np.asarray(params[piece.target])[piece.index]))
        for piece in found
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


@pytest.mark.parametrize(
    "settings",
    [{}, {"vision_feature_select_strategy": None}, {"vision_feature_select_strategy": "default"}],
)
def test_without_a_class_token_there_is_nothing_to_leave_out(settings, tmp_path):
    with pytest.raises(
        InputError,
        match='"default", which leaves out the first feature, but this encoder has no class token',
    ):
        load_pretrained(of_siglip(tmp_path / "siglip", **settings))


@pytest.mark.parametrize("strategy", ["full", "cls", 7])
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
