"""Settings of decoders that config.json may say in several ways, as transformers 5.24 understands them."""

import dataclasses
import json

import pytest

from mmjax.base.huggingface import transformers
from mmjax.errors import InputError
from mmjax.models.config import DynamicScaling, LanguageModelConfig, LinearScaling, YarnScaling
from mmjax.weights import load_pretrained
from mmjax.weights.families.base import ConfigJson, find_family
from mmjax.weights.load import open_pretrained
from mmjax.weights.save import save_params
from tests.weights.models import LLAMA, params_of, saved

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
THETA = {"rope_type": "default", "rope_theta": 500.0}
YARN = {"type": "yarn", "factor": 2.0, "attention_factor": 1.0}

# What stands in config.json; theta and scaling. Each was computed by transformers 5.24 (LlamaConfig.from_dict, LlamaRotaryEmbedding).
ROPE = {
    "theta among the older settings": ({"rope_scaling": THETA}, 500.0, None),
    "theta twice": ({"rope_scaling": THETA, "rope_theta": 7.0}, 500.0, None),
    "theta twice in the newer form": (
        {"rope_parameters": LINEAR | {"rope_theta": 3.0}, "rope_theta": 9.0},
        3.0,
        LinearScaling("linear", 4.0),
    ),
    "theta beside the newer form": (
        {"rope_parameters": LINEAR, "rope_theta": 9.0},
        9.0,
        LinearScaling("linear", 4.0),
    ),
    "the older counts": (
        {"rope_scaling": LINEAR, "rope_parameters": THETA},
        10_000.0,
        LinearScaling("linear", 4.0),
    ),
    "the older with theta": (
        {"rope_scaling": LINEAR, "rope_parameters": THETA, "rope_theta": 7.0},
        7.0,
        LinearScaling("linear", 4.0),
    ),
    "an empty one does not": ({"rope_scaling": {}, "rope_parameters": THETA}, 500.0, None),
    "null does not": ({"rope_scaling": None, "rope_parameters": THETA}, 500.0, None),
    "original length outside": (
        {"rope_scaling": YARN, "original_max_position_embeddings": 64},
        10_000.0,
        YarnScaling("yarn", 2.0, 64, 1.0),
    ),
    "original length twice": (
        {
            "rope_scaling": YARN | {"original_max_position_embeddings": 32},
            "original_max_position_embeddings": 64,
        },
        10_000.0,
        YarnScaling("yarn", 2.0, 64, 1.0),
    ),
}


def read(settings, model_type="llama", others=SMALL):
    given = ConfigJson(others | settings | {"model_type": model_type}, "config.json")
    return find_family(given).config(given)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "mixtral", "qwen2", "qwen3"])
def test_what_is_omitted_is_what_transformers_takes(model_type):
    found, theirs = read({}, model_type, {}), transformers().CONFIG_MAPPING[model_type]()
    names = {
        "vocabulary": "vocab_size",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "mlp_width": "intermediate_size",
        "norm_epsilon": "rms_norm_eps",
        "context_length": "max_position_embeddings",
        "tie_word_embeddings": "tie_word_embeddings",
        "sliding_window": "sliding_window",
        "mlp_bias": "mlp_bias",
        "output_bias": "attention_bias",
        "experts": "num_local_experts",
    }
    for own, name in names.items():
        assert (getattr(found, own) or 0) == (getattr(theirs, name, 0) or 0), own
    assert found.head_dim == (getattr(theirs, "head_dim", None) or found.width // found.heads)
    assert found.rope_theta == theirs.rope_parameters["rope_theta"]


def test_what_other_settings_follow_from():
    """The number of heads of keys is a default of the class, or that of all heads; so is the size of a head."""
    some = {"num_attention_heads": 16, "hidden_size": 64}
    assert [
        (read(some, name, {}).kv_heads, read(some, name, {}).head_dim)
        for name in ("llama", "mistral", "qwen3")
    ] == [(16, 4), (8, 4), (32, 128)]
    assert read(some | {"num_key_value_heads": None}, "mistral", {}).kv_heads == 16
    assert read({}, "mistral").sliding_window == 4096
    assert read({"sliding_window": None}, "mistral").sliding_window is None


@pytest.mark.parametrize("key", ["hidden_size", "rms_norm_eps", "rope_theta", "attention_bias"])
def test_null_is_no_default(key):
    with pytest.raises(InputError, match=f"{key} is null; it must be"):
        read({key: None})


@pytest.mark.parametrize("case", ROPE)
def test_rotary_positions(case):
    settings, theta, scaling = ROPE[case]
    found = read(settings)
    assert (found.rope_theta, found.rope_scaling) == (theta, scaling)


def test_rotary_positions_of_kinds_of_layers_are_refused():
    with pytest.raises(InputError, match="'full_attention' has settings of its own"):
        read({"rope_parameters": {"full_attention": LINEAR, "sliding_attention": THETA}})


@pytest.mark.parametrize("context", [32, 64, 128, None])
def test_a_base_that_grows_does_so_from_the_same_length_again(context, tmp_path):
    decoder = dataclasses.replace(
        LLAMA, rope_scaling=DynamicScaling("dynamic", 2.0, 64), context_length=context
    )
    config = LanguageModelConfig(decoder, compute_dtype="float32")
    save_params(params_of(config), config, tmp_path / "saved")
    assert load_pretrained(tmp_path / "saved").config.decoder.rope_scaling == decoder.rope_scaling


WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}


@pytest.mark.parametrize(
    "types",
    [
        5,
        "x",
        {},
        [["a"], ["a"]],
        [{}, {}],
        ["full_attention"],
        [],
        ["full_attention"] * 3,
        ["other"] * 2,
        [True] * 2,
    ],
)
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_kinds_of_layers_are_a_list_of_names(model_type, types):
    with pytest.raises(InputError, match=r"layer_types is .*; it must be a list of 2 texts"):
        read(WINDOW | {"layer_types": types}, model_type)


@pytest.mark.parametrize(
    ("settings", "window"),
    [
        ({}, 4),
        ({"layer_types": None}, 4),
        ({"layer_types": ["sliding_attention"] * 2}, 4),
        ({"layer_types": ["full_attention"] * 2}, None),
        ({"max_window_layers": 2}, None),
        ({"use_sliding_window": False, "layer_types": ["full_attention"] * 2}, None),
        ({"num_hidden_layers": 10**11}, 4),
    ],
)
def test_windows_of_all_layers_or_of_none(settings, window):
    assert read(WINDOW | settings, "qwen2").sliding_window == window


def test_windows_of_some_layers_are_refused():
    with pytest.raises(InputError, match="some layers have a sliding window"):
        read(WINDOW | {"max_window_layers": 1}, "qwen2")


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("value", [{"quant_method": "fp8"}, {}, [], "x"])
def test_weights_that_another_package_quantised_are_refused(key, value, tmp_path):
    folder = saved("llama", tmp_path / "llama")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {key: None}))
    open_pretrained(folder).close()
    for changed in ({key: value}, {"text_config": {key: value}}):
        (folder / "config.json").write_text(json.dumps(settings | changed))
        with pytest.raises(InputError, match=f"{key} says that the weights are quantised"):
            open_pretrained(folder)


def test_a_context_length_that_nobody_knows_is_not_made_up(tmp_path):
    """Transformers then has one of its own."""
    assert LLAMA.context_length is None
    folder = saved("llama", tmp_path / "unknown")
    assert "max_position_embeddings" not in json.loads((folder / "config.json").read_text())
    known = LanguageModelConfig(dataclasses.replace(LLAMA, context_length=512))
    save_params(params_of(known), known, tmp_path / "known")
    settings = json.loads((tmp_path / "known" / "config.json").read_text())
    assert settings["max_position_embeddings"] == 512
    for name, length in (("unknown", 2048), ("known", 512)):
        with open_pretrained(tmp_path / name) as opened:
            assert opened.config.decoder.context_length == length
