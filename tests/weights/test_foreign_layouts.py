"""Weights that other tools wrote are named by their tool, with what to do, in the place of a list of what is missing."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmjax.errors import InputError
from mmjax.weights.foreign_layouts import LAYOUTS
from mmjax.weights.load import open_pretrained
from mmjax.weights.safetensors_writing import write_safetensors
from tests.weights.files import listed
from tests.weights.models import saved

UP = "model.layers.0.mlp.up_proj"


@pytest.fixture
def folder(tmp_path):
    return saved("llama", tmp_path / "llama")


def rewritten(folder, change):
    """The folder with other tensors."""
    tensors = load_file(folder / "model.safetensors")
    tensors = change(tensors) or tensors
    (folder / "model.safetensors").unlink()
    write_safetensors(folder, listed(tensors))
    return folder


def replaced(**parts):
    """A change that puts other tensors in the place of every matrix of an MLP."""

    def change(tensors):
        for name in [name for name in tensors if ".mlp." in name]:
            del tensors[name]
            module = name.removesuffix(".weight")
            tensors |= {f"{module}.{part.replace('__', '.')}": parts[part] for part in parts}

    return change


INT, HALF, BYTES = (np.zeros((4, 4), kind) for kind in (np.int32, np.float16, np.uint8))
FP8 = np.zeros((64, 32), ml_dtypes.float8_e4m3fn)
QUANTISED = {
    "GPTQ": replaced(qweight=INT, qzeros=INT, scales=HALF, g_idx=INT[0]),
    "AWQ": replaced(qweight=INT, qzeros=INT, scales=HALF),
    "MLX": replaced(weight=INT.astype(np.uint32), scales=HALF, biases=HALF),
    "compressed-tensors": replaced(weight_packed=INT, weight_scale=HALF, weight_shape=INT[0]),
    r"bitsandbytes \(4 bits\)": replaced(weight=BYTES, weight__absmax=BYTES[0]),
    r"bitsandbytes \(8 bits\)": replaced(weight=BYTES.astype(np.int8), SCB=HALF[0]),
    "HQQ": replaced(W_q=BYTES, scale=HALF),
    r"FP8 \(with scales of blocks\)": replaced(weight=FP8, weight_scale_inv=HALF),
    r"FP8 or INT8 \(with scales\)": replaced(weight=FP8, weight_scale=HALF[0], input_scale=HALF[0]),
    "NVIDIA's ModelOpt": replaced(weight=BYTES, weight_scale=HALF, weight_scale_2=HALF[0]),
}


@pytest.mark.parametrize("tool", QUANTISED)
def test_weights_are_named_by_what_quantised_them(tool, folder):
    with pytest.raises(
        InputError,
        match=rf"model.safetensors has weights that {tool} quantised\. mmjax reads plain float32, .* GGUF files only",
    ):
        open_pretrained(rewritten(folder, QUANTISED[tool]))


def test_matrices_of_bytes_are_quantised_whoever_did_it(folder):
    with pytest.raises(InputError, match="has matrices of uint8: weights that some package"):
        open_pretrained(rewritten(folder, replaced(weights_of_mine=BYTES)))


def test_numbers_of_eight_bits_without_scales_are_numbers(folder):
    """Nothing has to be multiplied with them."""

    def change(tensors):
        for name in tensors:
            if ".mlp.up" in name:
                tensors[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)

    open_pretrained(rewritten(folder, change)).close()


def test_the_settings_of_a_tool_name_it_where_tensors_do_not(folder):
    (folder / "hf_quant_config.json").write_text("{}")
    open_pretrained(folder).close()  # nothing is wrong with the tensors
    with pytest.raises(InputError, match=r"ModelOpt quantised.*hf_quant_config.json says so"):
        open_pretrained(rewritten(folder, lambda tensors: {**tensors, "a.b": BYTES}))


def only(*names):
    return lambda tensors: dict.fromkeys(names, HALF)


OTHERS = {
    "wrapped by torch.compile": (
        lambda tensors: {f"_orig_mod.{name}": value for name, value in tensors.items()},
        "begin with '_orig_mod.': torch.compile",
    ),
    "wrapped for several devices": (
        lambda tensors: {f"module.{name}": value for name, value in tensors.items()},
        "begin with 'module.': DistributedDataParallel",
    ),
    "an adapter": (
        only(f"base_model.{UP}.lora_A.weight", f"base_model.{UP}.lora_B.weight"),
        r"is an adapter \(LoRA\) of the package peft.*merge_and_unload",
    ),
    "Meta's": (
        only("layers.0.attention.wq.weight", "tok_embeddings.weight"),
        "in the layout of Meta's llama or of Mistral AI",
    ),
    "OpenAI's": (
        only("visual.transformer.resblocks.0.attn.in_proj_weight", "visual.proj"),
        "in the layout of OpenAI's CLIP",
    ),
    "timm's": (only("blocks.0.attn.qkv.weight", "pos_embed"), "in the layout of timm"),
    "LLaVA's own": (
        only("model.mm_projector.0.weight"),
        r"in the layout of haotian-liu/LLaVA.*llava-hf.*convert_llava_weights_to_hf.py",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("configured", [True, False])
def test_other_names_than_those_of_transformers_are_named_by_their_tool(case, configured, folder):
    change, said = OTHERS[case]
    rewritten(folder, change)
    if not configured:
        (folder / "config.json").unlink()
    with pytest.raises(InputError, match=said):
        open_pretrained(folder)


LLAVA = {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp2x_gelu"}


@pytest.mark.parametrize("model_type", ["llava", "llava_llama", "llava_mistral"])
@pytest.mark.parametrize("pickled", [True, False])
def test_the_layout_of_the_paper_of_llava_is_known_by_its_settings(model_type, pickled, folder):
    """Whatever its weights are in: a pickle is not to be converted as a model of transformers."""
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(settings | LLAVA | {"model_type": model_type, "mm_hidden_size": 1024})
    )
    if pickled:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError) as caught:
        open_pretrained(folder)
    message = str(caught.value)
    assert message.startswith(str(folder / "config.json")) and "\n" not in message
    assert "haotian-liu/LLaVA" in message and "hf:llava-hf/llava-1.5-7b-hf" in message


def test_an_adapter_beside_a_model_is_not_left_out_silently(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(
        InputError, match=r"adapter_config.json, with which transformers would load"
    ):
        open_pretrained(folder)


def test_a_model_that_lacks_a_tensor_still_gets_its_list(folder):
    with pytest.raises(InputError, match=f"missing: {UP}.weight"):
        open_pretrained(rewritten(folder, lambda tensors: tensors.pop(f"{UP}.weight") is None))


def test_no_layout_fits_a_sound_model(folder, tmp_path):
    for name in ("siglip", "mixtral"):
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        open_pretrained(saved(name, tmp_path / "other")).close()
    assert all(layout.tensors for layout in LAYOUTS)
    save_file({"a": HALF}, tmp_path / "odd.safetensors")
