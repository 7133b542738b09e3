"""Every setting that transformers' configs have, or that its code reads, is obeyed, refused or harmless, and treated as its list says."""

import dataclasses
import json

import pytest

from mmjax.base.huggingface import transformers
from mmjax.errors import InputError
from mmjax.models.config import DecoderConfig
from mmjax.weights.config_keys import (
    COMMON,
    DECODER,
    ROPE,
    ConfigKeys,
    read_by_transformers,
    read_of_rope,
)
from mmjax.weights.families.base import ConfigJson, families, find_family
from mmjax.weights.load import load_pretrained, open_pretrained
from tests.weights.models import saved

TYPES = {
    model_type: family
    for family in families()
    for model_type in family.model_types
    if model_type in transformers().CONFIG_MAPPING
}
DECODERS = ("llama", "mistral", "mixtral", "qwen2", "qwen3")
SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
PLAIN = {key: value for key, value in SMALL.items() if key != "vocab_size"}
# Attributes of config objects that are no settings: methods, what belongs to a class, what transformers keeps for itself.
NO_SETTINGS = {
    "__class__",
    "_getattr_without_heterogeneous_validation",
    "_hasattr_without_heterogeneous_validation",
    "_heterogeneity_spec",
    "base_model_pp_plan",
    "base_model_tp_plan",
    "is_heterogeneous",
    "sub_configs",
}


def read(settings, model_type="llama", others=SMALL):
    given = ConfigJson(others | settings | {"model_type": model_type}, "config.json")
    return find_family(given).config(given)


def settings_of(model_type, keys):
    """What a class of transformers, and those that a file may become beside it, have and read."""
    found = set()
    for name in (model_type, *keys.model_types):
        own = transformers().CONFIG_MAPPING[name]
        names = {field.name for field in dataclasses.fields(own)} | read_by_transformers(name)
        found |= {
            name
            for name in names - NO_SETTINGS
            if name in names & {field.name for field in dataclasses.fields(own)}
            or not callable(getattr(own, name, None))
        }
        found |= own.attribute_map.keys()
    return found


@pytest.mark.parametrize("model_type", TYPES)
def test_every_setting_of_transformers_is_listed(model_type):
    keys = TYPES[model_type].keys[model_type]
    assert sorted(settings_of(model_type, keys) - keys.names) == []


def test_every_setting_of_rotary_positions_is_listed():
    assert {"rope_theta", "factor", "beta_fast"} <= read_of_rope() <= ROPE.names


def test_the_code_that_is_searched_is_where_it_was():
    assert {"hidden_size", "layer_types", "is_causal", "rope_parameters"} <= read_by_transformers(
        "qwen2"
    )
    assert "layer_types" in read_by_transformers("mistral"), "what AutoConfig acts on"
    assert read_by_transformers("gnu") == frozenset()


class Asking(dict):
    """The content of a config.json that notes what is looked for."""

    def __init__(self, *given):
        super().__init__(*given)
        self.looked: set[str] = set()

    def get(self, key, default=None):
        self.looked.add(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self.looked.add(key)
        return super().__getitem__(key)


@pytest.mark.parametrize("model_type", TYPES)
def test_what_is_listed_as_obeyed_is_looked_at(model_type):
    family = TYPES[model_type]
    keys = family.keys[model_type]
    given = Asking(
        (PLAIN if family.part == "vision" else SMALL if family.part == "decoder" else {})
        | {"model_type": model_type, "use_sliding_window": True}
    )
    if model_type == "mixtral":
        given |= {"num_experts": 2}
    family.config(ConfigJson(given, "config.json"))
    # These two are looked at before there is a family.
    before = {"quantization_config", "compression_config"}
    assert set(keys.obeyed.split()) - before <= given.looked


@pytest.mark.parametrize("model_type", TYPES)
def test_no_setting_is_obeyed_and_harmless_at_once(model_type):
    keys = TYPES[model_type].keys[model_type]
    harmless = " ".join(keys.harmless.values()).split()
    assert not set(harmless) & {*keys.obeyed.split(), *keys.refused}
    assert not set(keys.obeyed.split()) & keys.refused.keys()
    assert len(harmless) == len(set(harmless))


def test_lists_of_keys_are_joined_and_the_later_word_counts():
    first = ConfigKeys("a", {"b": (1,)}, {"why": "c d", "else": "e"})
    both = first | ConfigKeys("c", {"e": (2,)}, {"why": "b"}, ("other",))
    assert both.obeyed.split() == ["a", "c"] and both.refused == {"e": (2,)}
    assert {key: value.split() for key, value in both.harmless.items() if value} == {
        "why": ["d", "b"]
    }
    assert both.model_types == ("other",) and both.names == {"a", "b", "c", "d", "e"}


REFUSED = {
    "a window of some layers, as AutoConfig reads it": (
        "mistral",
        {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]},
        "some layers have a sliding window and some have not",
    ),
    "such layers without a window": (
        "mistral",
        {"sliding_window": None, "layer_types": ["sliding_attention"] * 2},
        "layer_types has sliding_attention, but there is no sliding_window",
    ),
    "the same in a family that can turn windows off": (
        "qwen3",
        {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 2},
        "layer_types has sliding_attention, but there is no sliding_window",
    ),
    "too few kinds of layers": (
        "mistral",
        {"layer_types": ["full_attention"]},
        r"layer_types is \[\"full_attention\"\]; it must be a list of 2 texts",
    ),
    "experts with two kinds of layers": (
        "mixtral",
        {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]},
        "some layers have a sliding window and some have not",
    ),
    "experts whose layers contradict their window": (
        "mixtral",
        {"sliding_window": 8, "layer_types": ["full_attention"] * 2},
        "layer_types has full_attention, but sliding_window is 8",
    ),
    "Llama with such layers": (
        "llama",
        {"layer_types": ["sliding_attention"] * 2},
        "layer_types has sliding_attention",
    ),
    "Llama with a window, which only its cache reads": (
        "llama",
        {"sliding_window": 8},
        "sliding_window is 8; mmjax has null only",
    ),
    "settings of each layer": (
        "qwen2",
        {"per_layer_config": {"0": {"sliding_window": 4}}},
        "per_layer_config is ",
    ),
    "attention in both directions": ("llama", {"is_causal": False}, "is_causal is false"),
    "attention in chunks": ("mistral", {"attention_chunk_size": 8}, "attention_chunk_size is 8"),
    "another activation": ("qwen3", {"hidden_act": "gelu"}, '"gelu"; mmjax has "silu" or "swish"'),
    "another file of weights": (
        "llama",
        {"transformers_weights": "others.safetensors"},
        'transformers_weights is "others.safetensors"',
    ),
    "settings in another file": (
        "mixtral",
        {"configuration_files": ["config.5.0.json"]},
        r"configuration_files is \[\"config.5.0.json\"\]",
    ),
    "heads of another size": (
        "dinov2",
        {"head_dim": 8},
        "head_dim is 8; mmjax has null or 16 only",
    ),
    "no biases": ("dinov2", {"qkv_bias": False}, "qkv_bias is false; mmjax has true only"),
    "one channel": ("siglip_vision_model", {"num_channels": 1}, "num_channels is 1; mmjax has 3"),
    "an encoder within and beside": (
        "clip_vision_model",
        {"vision_config": {"hidden_size": 64}},
        "vision_config is .*; mmjax has null only",
    ),
    "one channel, within a whole model": (
        "clip",
        {"vision_config": {"num_channels": 1}},
        "vision_config: num_channels is 1; mmjax has 3 only",
    ),
    "features after the last norm": (
        "siglip",
        {"vision_config": {"tie_last_hidden_states": True}},
        "vision_config: tie_last_hidden_states is true",
    ),
    "a projector without biases": (
        "llava",
        {"multimodal_projector_bias": False},
        "multimodal_projector_bias is false; mmjax has true only",
    ),
    "both directions, in the text of a whole model": (
        "llava",
        {"text_config": SMALL | {"is_causal": False}},
        "text_config: is_causal is false",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_change_the_function_is_refused(case):
    model_type, settings, said = REFUSED[case]
    others = {"decoder": SMALL, "vision": PLAIN, "model": {}}[TYPES[model_type].part]
    with pytest.raises(InputError, match=said):
        read(settings, model_type, {} if model_type in ("clip", "siglip") else others)


OBEYED = {
    "all layers have the window": (
        "mistral",
        {"sliding_window": 8, "layer_types": ["sliding_attention"] * 2},
        {"sliding_window": 8},
    ),
    "no layer has it": (
        "mistral",
        {"sliding_window": 8, "layer_types": ["full_attention"] * 2},
        {"sliding_window": None},
    ),
    "an older name of such layers": (
        "qwen2",
        {"use_sliding_window": True, "layer_types": ["attention"] * 2},
        {"sliding_window": None},
    ),
    "kinds of layers that are null": ("mistral", {"layer_types": None}, {"sliding_window": 4096}),
    "kinds of layers that say nothing new": (
        "llama",
        {"layer_types": ["full_attention"] * 2, "sliding_window": None},
        {"sliding_window": None},
    ),
    "a window that is null though it is in use": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {"sliding_window": None},
    ),
    "experts by their other name": ("mixtral", {"num_experts": 4}, {"experts": 4}),
    "which counts before the first": (
        "mixtral",
        {"num_experts": 4, "num_local_experts": 2},
        {"experts": 4},
    ),
    "another name of the activation": ("llama", {"hidden_act": "swish"}, {"width": 32}),
    "a head of the size that follows": ("dinov2", {"head_dim": 16}, {"width": 32}),
    "what older versions wrote of the encoder": (
        "clip",
        {
            "vision_config": {"hidden_size": 64, "patch_size": 16},
            "vision_config_dict": {"hidden_size": 96},
        },
        {"width": 96, "patch_size": 32},
    ),
    "the whole says nothing of its encoder": (
        "clip",
        {"hidden_size": 8, "vision_config": None},
        {"width": 768},
    ),
    "the encoder calls itself otherwise": (
        "siglip",
        {"vision_config": {"model_type": "clip_vision_model", "hidden_size": 96}},
        {"width": 96, "pooling_head": True},
    ),
}


@pytest.mark.parametrize("case", OBEYED)
def test_what_says_the_same_in_another_way_is_obeyed(case):
    model_type, settings, expected = OBEYED[case]
    others = {"decoder": SMALL, "vision": PLAIN}[TYPES[model_type].part]
    found = read(settings, model_type, {} if model_type in ("clip", "siglip") else others)
    assert {name: getattr(found, name) for name in expected} == expected


def test_of_parts_that_are_absent_a_whole_model_has_its_own_defaults():
    """Those of its class, which are not those of the part's class; these stand for what a part that is there omits."""
    absent, empty = (read(given, "llava", {}).vision for given in ({}, {"vision_config": {}}))
    assert (absent.width, absent.layers, absent.patch_size) == (1024, 24, 14)
    assert (empty.width, empty.layers, empty.patch_size) == (768, 12, 32)


@pytest.fixture
def folder(tmp_path):
    return saved("llama", tmp_path / "llama")


def with_settings(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def test_what_nobody_knows_is_named(folder, caplog):
    with open_pretrained(folder) as opened:
        assert opened.notes == ()
    odd = {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1]}}
    with_settings(folder, moustache=1, beard=None, **odd)
    load_pretrained(folder)
    (rope, note) = (record.getMessage() for record in caplog.records)
    assert "config.json has settings that neither mmjax nor transformers' code" in note
    assert note.endswith("reads: 'beard', 'moustache'.")
    assert "rope_scaling" in rope and rope.endswith("reads: 'mrope_section'.")


def test_what_nobody_knows_is_named_in_parts_too(caplog):
    given = ConfigJson(
        {"model_type": "llava", "text_config": SMALL | {"beard": 1}, "moustache": {"a": 1}}, "there"
    )
    find_family(given).config(given)
    assert [note.rpartition(" ")[2] for note in given.notes] == ["'beard'.", "'moustache'."]
    whole = ConfigJson({"model_type": "clip", "vision_config": {"moustache": 1}}, "there")
    find_family(whole).config(whole)
    assert whole.notes[0].startswith("there, vision_config has settings")


def test_a_long_list_of_what_nobody_knows_is_cut():
    given = ConfigJson(SMALL | {"model_type": "llama"} | {f"x{i}": i for i in range(90)}, "there")
    find_family(given).config(given)
    assert len(given.notes) == 1 and given.notes[0].endswith(" and 82 more.")


def test_what_transformers_reads_and_mmjax_does_not_know_is_refused(monkeypatch):
    """As if a setting had come with a newer transformers."""
    family = TYPES["qwen2"]
    fewer = dataclasses.replace(
        COMMON | DECODER,
        obeyed=DECODER.obeyed.replace("layer_types", ""),
        harmless={
            reason: names.replace("attention_dropout", "")
            for reason, names in DECODER.harmless.items()
        },
    )
    older = dataclasses.replace(family, keys={"qwen2": fewer})
    given = SMALL | {"model_type": "qwen2", "attention_dropout": 0.5}
    with pytest.raises(InputError, match="mmjax does not know the setting 'attention_dropout'"):
        older.config(ConfigJson(given, "config.json"))


def test_a_family_without_a_list_still_names_what_it_did_not_ask_for():
    def read(c):
        return DecoderConfig(c.number("vocab_size"), 8, 1, 1, 1, 8, 8)

    own = dataclasses.replace(TYPES["llama"], model_types=("gnu",), read=read, keys={})
    given = ConfigJson({"vocab_size": 3, "torch_dtype": "float32", "beard": 1}, "config.json")
    assert own.config(given).vocabulary == 3
    assert [note.rpartition(" ")[2] for note in given.notes] == ["'beard'."]
