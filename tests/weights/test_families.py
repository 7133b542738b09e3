"""Families describe themselves: one of one's own is one file; which one a model is written as; what is said of those that there are not."""

import dataclasses
import importlib
import json
import pathlib
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, LanguageModelConfig, ViTConfig
from mmjax.weights import families, load_pretrained, save_pretrained
from mmjax.weights.families.base import ConfigJson, Family, class_defaults, find_writer
from mmjax.weights.families.base import families as all_families
from mmjax.weights.save import save_params
from tests.test_extending import examples
from tests.weights.models import LLAMA, MIXTRAL, SIGLIP, params_of, saved

OWN = examples()["mmjax/weights/families/gnu.py"]
GNU = LanguageModelConfig(
    dataclasses.replace(LLAMA, query_key_norm=True, mlp_bias=True), compute_dtype="float32"
)


@pytest.fixture
def own(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A family in a file beside those of mmjax; gone afterwards."""
    folder = tmp_path / "families"
    folder.mkdir()
    (folder / "gnu.py").write_text(OWN)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(folder)])
    importlib.invalidate_caches()
    yield
    sys.modules.pop("mmjax.weights.families.gnu", None)
    if hasattr(families, "gnu"):
        delattr(families, "gnu")


@pytest.mark.usefixtures("own")
def test_a_family_of_ones_own_is_one_file(tmp_path: pathlib.Path):
    """Written, as nothing else has its form; read; and written again from the module, with the same bytes."""
    params = params_of(GNU)
    save_params(params, GNU, tmp_path / "gnu")
    config = json.loads((tmp_path / "gnu" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("gnu", ["GnuForCausalLM"])
    module = load_pretrained(tmp_path / "gnu")
    assert module.config.decoder == GNU.decoder
    assert [(origin.part, origin.family) for origin in module.origins] == [("decoder", "Gnu")]
    found = parameters.split(module)[1]
    assert found.keys() == params.keys()
    for path, value in params.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    save_pretrained(module, tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "gnu" / name).read_bytes()
    assert b"gnu.blocks.1.mlp.up_proj.weight" in (tmp_path / "gnu/model.safetensors").read_bytes()


def test_without_its_file_there_is_no_such_family(tmp_path: pathlib.Path):
    with pytest.raises(
        InputError,
        match=r"No family of published models has the form of this Decoder.*mmjax writes Llama, Mistral",
    ):
        save_params(params_of(GNU), GNU, tmp_path / "gnu")


def test_an_unknown_model_type_is_refused_with_those_that_there_are(tmp_path: pathlib.Path):
    folder = saved("llama", tmp_path / "llama")
    settings = json.loads((folder / "config.json").read_text())
    for given, shown in (("gnu", "'gnu'"), (None, "''"), ("x" * 5000, "'xxx.*5000 characters")):
        (folder / "config.json").write_text(json.dumps(settings | {"model_type": given}))
        with pytest.raises(
            InputError,
            match=rf"config.json: model_type is {shown}.*; mmjax knows clip, clip_vision_model, dinov2, llama, llava, mistral, mixtral, "
            "qwen2, qwen3, siglip, siglip_vision_model",
        ):
            load_pretrained(folder)


def changed(config: DecoderConfig | ViTConfig, **changes: object) -> DecoderConfig | ViTConfig:
    return dataclasses.replace(config, **changes)


CLIP = changed(SIGLIP, class_token=True, embedding_norm=True, patch_bias=False, pooling_head=False)
WRITTEN_AS = {
    "Llama": LLAMA,
    "Mistral": changed(LLAMA, sliding_window=8),
    "Mixtral": MIXTRAL,
    "Qwen2.5": changed(LLAMA, qkv_bias=True),
    "Qwen3": changed(LLAMA, query_key_norm=True),
    "SigLIP": SIGLIP,
    "CLIP": CLIP,
    "DINOv2": changed(CLIP, embedding_norm=False, patch_bias=True, layer_scale=True),
}


@pytest.mark.parametrize("name", WRITTEN_AS)
def test_which_family_a_model_is_written_as(name: str):
    assert find_writer(WRITTEN_AS[name]).name == name
    assert (
        find_writer(WRITTEN_AS[name], origin="DINOv2" if name != "DINOv2" else "CLIP").name == name
    )


def test_a_model_goes_back_as_what_it_came_from_where_that_has_its_form():
    """Mistral without a window has the form of Llama."""
    assert find_writer(LLAMA, origin="Mistral").name == "Mistral"
    assert find_writer(changed(LLAMA, mlp_bias=True), origin="Mistral").name == "Llama"


def test_only_one_family_is_first_for_a_model():
    """Wherever two families accept a model, their priorities say which is written."""
    both = 0
    for config in WRITTEN_AS.values():
        part = "decoder" if isinstance(config, DecoderConfig) else "vision"
        accepting = [family for family in all_families(part) if family.accepts(config)]
        assert len({family.priority for family in accepting}) == len(accepting)
        both += len(accepting) > 1
    assert both == 1


def test_equal_priorities_are_a_mistake(monkeypatch: pytest.MonkeyPatch):
    mistral = importlib.import_module("mmjax.weights.families.mistral")
    monkeypatch.setattr(mistral, "FAMILY", dataclasses.replace(mistral.FAMILY, priority=1))
    with pytest.raises(AssertionError, match="Llama and Mistral need different priorities"):
        find_writer(LLAMA)


def test_what_encoders_omit_is_what_transformers_takes():
    read = {family.name: family.config(ConfigJson({}, "")) for family in all_families("vision")}
    clip, siglip, dinov2 = (read[name] for name in ("CLIP", "SigLIP", "DINOv2"))
    assert (clip.patch_size, clip.activation, clip.norm_epsilon) == (32, "quick_gelu", 1e-5)
    assert (siglip.patch_size, siglip.activation, siglip.pooling_head) == (16, "gelu_tanh", True)
    assert (dinov2.patch_size, dinov2.mlp_width, dinov2.gated_mlp) == (14, 3072, False)


def test_transformers_has_every_family():
    assert all(class_defaults(family.model_types[0]) for family in all_families())
    assert class_defaults("gnu") == {}


def test_every_file_has_one_family():
    names = [family.name for family in all_families()]
    files = {path.stem for path in pathlib.Path(families.__file__).parent.glob("[a-z]*.py")}
    assert len(names) == len(set(names)) == len(files - {"base"})
    types = [model_type for family in all_families() for model_type in family.model_types]
    assert len(types) == len(set(types))
    assert all(isinstance(family, Family) for family in all_families())
    assert all(family.images for family in all_families("vision"))
    assert all(family.write for family in all_families("decoder"))
