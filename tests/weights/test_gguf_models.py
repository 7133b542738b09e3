"""Models in GGUF files: settings and tensors by llama.cpp's names, as the families have them; and what mmjax would compute otherwise."""

import dataclasses
import json
import math
import struct

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import (
    DecoderConfig,
    LanguageModelConfig,
    LinearScaling,
    Llama3Scaling,
    YarnScaling,
)
from mmjax.weights import load_pretrained
from mmjax.weights.generation import generation_settings
from mmjax.weights.load import open_pretrained
from mmjax.weights.save import save_params
from tests.weights.files import gguf_bytes, gguf_text
from tests.weights.models import params_of

BASE = DecoderConfig(
    vocabulary=24,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    context_length=128,
)
MODELS = {
    "llama": ("llama", BASE),
    "llama of one key head, tied": (
        "llama",
        dataclasses.replace(BASE, kv_heads=1, tie_word_embeddings=True),
    ),
    "mixtral": ("llama", dataclasses.replace(BASE, experts=3, experts_per_token=2)),
    "qwen2": ("qwen2", dataclasses.replace(BASE, qkv_bias=True)),
    "qwen3": ("qwen3", dataclasses.replace(BASE, query_key_norm=True, head_dim=16)),
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "block_sparse_moe.gate": "ffn_gate_inp",
}
EXPERTS = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}


def permuted(array, heads):
    """As llama.cpp's converter does with queries and keys of Llama."""
    return (
        array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
        .swapaxes(1, 2)
        .reshape(array.shape)
    )


def write(folder, architecture, config, fields=None, tensors=None):
    """A model with random numbers as a GGUF file. Returns its path and its parameters."""
    whole = LanguageModelConfig(config, compute_dtype="float32")
    params = params_of(whole)
    save_params(params, whole, folder / "transformers")
    own = {
        "block_count": config.layers,
        "embedding_length": config.width,
        "feed_forward_length": config.mlp_width,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_epsilon,
        "rope.freq_base": config.rope_theta,
        "context_length": config.context_length,
    }
    if config.experts:
        own |= {"expert_count": config.experts, "expert_used_count": config.experts_per_token}
    writer = gguf.GGUFWriter(folder / "model.gguf", architecture)
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in (own | (fields or {})).items():
        add[type(value)](key if key.startswith("tokenizer") else f"{architecture}.{key}", value)
    for name, array in (
        converted(load_file(folder / "transformers" / "model.safetensors"), architecture, config)
        | (tensors or {})
    ).items():
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf", params


def converted(tensors, architecture, config):
    """Tensors of transformers as llama.cpp has them."""
    found, experts = {}, {}
    for name, array in tensors.items():
        module, _, leaf = name.rpartition(".")
        layer = f"blk.{name.split('.')[2]}." if ".layers." in name else ""
        module = ".".join(module.split(".")[3:]) if layer else module
        if ".experts." in name:
            experts.setdefault(f"{layer}{EXPERTS[module[-2:]]}.weight", {})[
                int(module.split(".")[2])
            ] = array
            continue
        heads = {"self_attn.q_proj": config.heads, "self_attn.k_proj": config.kv_heads}.get(module)
        if heads and architecture == "llama":
            array = permuted(array, heads)
        found[f"{layer}{NAMES[module]}.{leaf}"] = array
    return found | {
        name: np.stack([arrays[number] for number in sorted(arrays)])
        for name, arrays in experts.items()
    }


def settings(path):
    with open_pretrained(path) as opened:
        return opened.config.decoder


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_and_setting_is_the_one_that_was_converted(name, tmp_path):
    architecture, config = MODELS[name]
    path, params = write(tmp_path, architecture, config)
    module = load_pretrained(path)
    epsilon = module.config.decoder.norm_epsilon
    assert math.isclose(epsilon, config.norm_epsilon, rel_tol=1e-6)
    assert module.config.decoder == dataclasses.replace(config, norm_epsilon=epsilon)
    found = parameters.split(module)[1]
    assert found.keys() == params.keys()
    for key, value in params.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def factors(scale, size=8, theta=10_000.0, low=1.0, high=4.0, original=8192):
    """rope_freqs.weight, as llama.cpp's converter makes it of a config.json of Llama 3.1."""
    found = []
    for index in range(0, size, 2):
        wavelength = 2 * math.pi * theta ** (index / size)
        if wavelength < original / high:
            found.append(1.0)
        elif wavelength > original / low:
            found.append(scale)
        else:
            smooth = (original / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / scale + smooth))
    return np.array(found, np.float32)


@pytest.mark.parametrize("scale", [8.0, 32.0])
def test_factors_of_llama_3(scale, tmp_path):
    given = factors(scale, 32, 500_000.0)
    assert len(set(given)) > 2  # some are kept, some divided, some between
    wide = dataclasses.replace(BASE, head_dim=32, rope_theta=500_000.0)
    path, _ = write(tmp_path, "llama", wide, tensors={"rope_freqs.weight": given})
    assert settings(path).rope_scaling == Llama3Scaling("llama3", scale, 1.0, 4.0, 8192)


def test_factors_of_one_change_nothing(tmp_path):
    path, _ = write(tmp_path, "llama", BASE, tensors={"rope_freqs.weight": np.ones(4, np.float32)})
    assert settings(path).rope_scaling is None


YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
}
HONOURED = {
    "a factor alone is linear": ({"rope.scaling.factor": 4.0}, LinearScaling("linear", 4.0), None),
    "of older files": ({"rope.scale_linear": 2.0}, LinearScaling("linear", 2.0), None),
    "none": ({"rope.scaling.type": "none", "rope.scaling.factor": 2.0}, None, None),
    "yarn": (YARN, YarnScaling("yarn", 4.0, 32, 0.1 * math.log(4) + 1), None),
    "attention of yarn": (
        YARN | {"rope.scaling.attn_factor": 0.5, "rope.scaling.yarn_beta_fast": 16.0},
        YarnScaling("yarn", 4.0, 32, 0.5 * (0.1 * math.log(4) + 1), beta_fast=16.0),
        None,
    ),
    "a window": ({"attention.sliding_window": 5}, None, 5),
    "no window": ({"attention.sliding_window": 0}, None, None),
}


@pytest.mark.parametrize("case", HONOURED)
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_field_is_obeyed(case, architecture, tmp_path):
    fields, scaling, window = HONOURED[case]
    path, _ = write(
        tmp_path,
        architecture,
        dataclasses.replace(BASE, query_key_norm=architecture == "qwen3"),
        fields,
    )
    found = settings(path)
    assert (found.rope_scaling, found.sliding_window) == (scaling, window)


REFUSED = {
    "part of the head": (
        {"rope.dimension_count": 4},
        {},
        "rope.dimension_count is 4, but a head has 8 channels",
    ),
    "other values": ({"attention.value_length": 4}, {}, "attention.value_length is 4"),
    "a pattern of windows": (
        {"attention.sliding_window": 4, "attention.sliding_window_pattern": 2},
        {},
        "sliding_window_pattern",
    ),
    "scaled scores": ({"attention.scale": 0.5}, {}, "attention.scale is 0.5; mmjax has 0.0 only"),
    "scaled embeddings": ({"embedding_scale": 12.0}, {}, "embedding_scale is 12.0; mmjax has 0.0"),
    "scaled logits": ({"logit_scale": 8.0}, {}, "logit_scale is 8.0; mmjax has 0.0 only"),
    "first layers without experts": ({"leading_dense_block_count": 1}, {}, "block_count is 1"),
    "attention without yarn": (
        {"rope.scaling.attn_factor": 0.5},
        {},
        "attn_factor is 0.5, which mmjax has for YaRN only",
    ),
    "of another kind": (
        {"rope.scaling.type": "longrope"},
        {},
        'type is "longrope"; mmjax knows none, linear, yarn',
    ),
    "type as a list": (
        {"rope.scaling.type": [1, 2]},
        {},
        r"rope.scaling.type is \[1, 2\]; it must be a text",
    ),
    "window as text": ({"attention.sliding_window": "x"}, {}, "must be a whole number"),
    "another ramp": (
        {},
        {"rope_freqs.weight": factors(8.0, original=4096)},
        "is not the rescaling of Llama 3.1",
    ),
    "too many factors": (
        {},
        {"rope_freqs.weight": np.ones(5, np.float32)},
        r"is \[5\], but a head has 8",
    ),
    "twice": ({"rope.scaling.factor": 2.0}, {"rope_freqs.weight": np.ones(4, np.float32)}, "twice"),
    "a token as text": (
        {"tokenizer.ggml.bos_token_id": "abc"},
        {},
        'bos_token_id is "abc"; it must be a whole number',
    ),
}


def test_a_field_that_nobody_knows_is_named(tmp_path):
    path, _ = write(tmp_path, "llama", BASE, {"moustache": 3, "logit_scale": 0.0})
    with open_pretrained(path) as opened:
        assert opened.notes == (f"{path}: mmjax does not know these fields of llama: 'moustache'.",)


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused(case, tmp_path):
    fields, tensors, said = REFUSED[case]
    path, _ = write(tmp_path, "llama", BASE, fields, tensors)
    with pytest.raises(InputError, match=said) as caught:
        load_pretrained(path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


def field(key, kind, value):
    return gguf_text(key) + struct.pack("<I", kind) + value


ARRAY = struct.pack("<IQI", 4, 1, 7)
BOOK = gguf_text("x" * 60_000_000)
ODD = {
    "architecture as a list": (
        [field("general.architecture", 9, ARRAY)],
        "its architecture is no text",
    ),
    "architecture as a book": (
        [field("general.architecture", 8, BOOK)],
        r"\(60000000 characters\)",
    ),
    "no architecture": ([], "its architecture is no text"),
    "parts as text": (
        [field("split.count", 8, gguf_text("a\nb" * 1000))],
        "split.count is not a number",
    ),
    "parts as a list": ([field("split.count", 9, ARRAY)], "split.count is not a number"),
    "alignment as a book": (
        [field("general.alignment", 8, BOOK)],
        r"\(60000000 characters\), which is no power",
    ),
    "alignment as a list": ([field("general.alignment", 9, ARRAY)], "a list, which is no power"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_fields_are_one_short_sentence(case, tmp_path):
    fields, said = ODD[case]
    (tmp_path / "model.gguf").write_bytes(gguf_bytes(fields))
    with pytest.raises(InputError, match=said) as caught:
        load_pretrained(tmp_path / "model.gguf")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


def test_ends_of_turns_are_ends_too(tmp_path):
    """As in llama.cpp. One alone stays a number."""
    eos = {"tokenizer.ggml.eos_token_id": 2}
    more = {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 2}
    for name, fields, ends in (("one", eos, 2), ("several", eos | more, [2, 5])):
        (tmp_path / name).mkdir()
        path, _ = write(tmp_path / name, "llama", BASE, fields)
        with open_pretrained(path) as opened:
            assert json.loads(opened.origins[0].kept)["eos_token_id"] == ends
            assert generation_settings(path, opened.origins)["eos_token_id"] == ends
