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
from mmjax.weights import load_pretrained, save_pretrained
from mmjax.weights.families import llava
from mmjax.weights.families.base import find_writer
from mmjax.weights.families.llama import write_decoder
from mmjax.weights.families.siglip import write as write_siglip
from mmjax.weights.rules import tensor_slices
from mmjax.weights.save import save_params
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


def same_params(left, right):
    left, right = (parameters.split(module)[1] for module in (left, right))
    assert left.keys() == right.keys()
    for path, value in left.items():
        np.testing.assert_array_equal(right[path], value, err_msg=path)


def test_a_model_of_this_form_is_saved_as_one_folder_too(tmp_path):
    """Beside its parts, and with what the whole says beside them."""
    before = load_pretrained(CLIP)
    save_pretrained(before, tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "vision",
        "connector",
        "decoder",
        "llava",
    }
    found = json.loads((tmp_path / "saved" / "llava" / "config.json").read_text())
    given = json.loads((CLIP / "config.json").read_text())
    for key in (
        "architectures",
        "model_type",
        "image_token_index",
        "image_seq_length",
        "projector_hidden_act",
        "vision_feature_layer",
        "vision_feature_select_strategy",
        "multimodal_projector_bias",
        "tie_word_embeddings",
    ):
        assert found[key] == given[key], key
    assert found["text_config"]["vocab_size"] == given["text_config"]["vocab_size"]
    for folder in ("saved", "saved/llava"):
        again = load_pretrained(tmp_path / folder)
        assert again.config == before.config
        same_params(again, before)
    save_pretrained(load_pretrained(tmp_path / "saved"), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "llava" / "config.json").read_text()) == found


NO_LLAVA = {
    "hidden_width": {"hidden_width": 16},
    "class_token": {"class_token": True},
    "final_norm": {"final_norm": True},
    "image_boundary_tokens": {"image_boundary_tokens": True},
}


@pytest.mark.parametrize("name", NO_LLAVA)
def test_a_model_of_another_form_is_saved_in_parts_alone(name, tmp_path):
    vision = dataclasses.replace(
        CONFIG.vision, class_token=True, embedding_norm=True, patch_bias=False
    )
    assert llava.accepts(dataclasses.replace(CONFIG, vision=vision))
    connector = dataclasses.replace(CONFIG.connector, **NO_LLAVA[name])
    config = dataclasses.replace(CONFIG, vision=vision, connector=connector)
    assert not llava.accepts(config)
    if name == "hidden_width":
        save_params(params_of(config), config, tmp_path / "saved")
        assert not (tmp_path / "saved" / "llava").exists()


def test_where_no_id_stands_for_images_one_is_added(tmp_path):
    """With a row of its own, which is never the likeliest: its numbers are the mean of the others."""
    params = params_of(CONFIG)
    save_params(params, CONFIG, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "llava" / "config.json").read_text())
    assert config["image_token_index"] == 48 and config["text_config"]["vocab_size"] == 49
    assert config["vision_feature_select_strategy"] == "full"
    assert json.loads((tmp_path / "saved" / "llava" / "processor_config.json").read_text()) == {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": 4,
        "vision_feature_select_strategy": "full",
        "num_additional_image_tokens": 0,
    }
    found = parameters.split(load_pretrained(tmp_path / "saved" / "llava"))[1]
    for path, rows in (("decoder/embedding", (48, 49)), ("decoder/lm_head/kernel", (48, 49))):
        own, other = np.asarray(params[path]), np.asarray(found[path])
        own, other = (own, other) if path.endswith("embedding") else (own.T, other.T)
        assert (len(own), len(other)) == rows
        np.testing.assert_array_equal(other[:48], own)
        np.testing.assert_allclose(other[48], own.mean(0), atol=1e-6)
    assert load_pretrained(tmp_path / "saved").config.decoder.vocabulary == 48


def test_an_id_that_the_vocabulary_has_needs_no_row(tmp_path):
    save_params(params_of(CONFIG), CONFIG, tmp_path / "saved", image_token=3)
    config = json.loads((tmp_path / "saved" / "llava" / "config.json").read_text())
    assert config["image_token_index"] == 3 and config["text_config"]["vocab_size"] == 48


@pytest.mark.parametrize("token", [40, 10**9])
def test_an_id_for_images_that_no_row_belongs_to_is_not_kept(token, tmp_path):
    module = load_pretrained(of_clip(tmp_path / "clip", image_token_index=token))
    assert not [origin for origin in module.origins if origin.part == "connector"]
    with pytest.raises(InputError, match="image_token_index is -1; it must be a whole number"):
        load_pretrained(of_clip(tmp_path / "odd", image_token_index=-1))


def test_nor_is_one_in_parts(tmp_path):
    save_pretrained(load_pretrained(CLIP), tmp_path / "saved")
    path = tmp_path / "saved" / "connector" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_token_index": 10**9}))
    module = load_pretrained(tmp_path / "saved")
    assert [origin.part for origin in module.origins] == ["vision", "decoder"]
