"""Weights that other tools wrote: quantised ones, and models under other names than transformers'. Which tool it was, and what to do.

They are known by the names of their tensors, and asked for where a model cannot be read, in the place of a list of what is missing.
"""

import dataclasses
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from mmjax.errors import InputError
from mmjax.weights.families.base import read_config
from mmjax.weights.tensors import TensorSource

_PLAIN = "mmjax reads plain float32, bfloat16 and float16, and quantised weights of GGUF files only: take the model in one of these forms"
_ADAPTER = "adapter_config.json"
_OF_LLAVA = ("mm_vision_tower", "mm_projector_type", "mm_hidden_size")
_LLAVA = (
    "is in the layout of haotian-liu/LLaVA, not in that of transformers, which has the same model_type. Take the same model from llava-hf "
    "(hf:llava-hf/llava-1.5-7b-hf, for one), or convert it with convert_llava_weights_to_hf.py of transformers"
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A form of weights that mmjax does not read.

    Attributes:
        what: what the weights are or are in, and what to do.
        tensors: globs, each of which some tensor has.
        files: names of files that a folder may have instead.
    """

    what: str
    tensors: tuple[str, ...]
    files: tuple[str, ...] = ()


def _quantised(tool: str, *tensors: str, files: tuple[str, ...] = ()) -> Layout:
    return Layout(f"has weights that {tool} quantised. {_PLAIN}", tensors, files)


LAYOUTS = (
    _quantised("GPTQ", "*.qweight", "*.g_idx", files=("quantize_config.json",)),
    _quantised("AWQ", "*.qweight", "*.qzeros", files=("quant_config.json",)),
    _quantised("MLX", "*.scales", "*.biases"),
    _quantised("compressed-tensors", "*.weight_packed"),
    _quantised("bitsandbytes (4 bits)", "*.weight.absmax"),
    _quantised("bitsandbytes (8 bits)", "*.SCB"),
    _quantised("HQQ", "*.W_q"),
    _quantised("AQLM", "*.codebooks", "*.codes"),
    _quantised("optimum-quanto", "*.weight._data"),
    _quantised("optimum-quanto", "*.weight._qdata"),
    _quantised("MXFP4", "*_blocks", "*_scales"),
    _quantised("NVIDIA's ModelOpt", "*.weight_scale_2", files=("hf_quant_config.json",)),
    _quantised("FP8 (with scales of blocks)", "*.weight_scale_inv"),
    _quantised("FP8 or INT8 (with scales)", "*.weight_scale"),
    _quantised("FP8 (with scales of ComfyUI)", "*.scale_weight"),
    Layout(_LLAVA, ("*mm_projector.*",)),
    Layout(
        "is an adapter (LoRA) of the package peft, not a model. Merge it into its model: "
        "AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().save_pretrained(new_folder)",
        ("*.lora_A.*",),
    ),
    Layout(
        "is in the layout of Meta's llama or of Mistral AI (consolidated.safetensors), not in that of transformers. Take the files beside "
        "it that transformers reads, or convert it with convert_llama_weights_to_hf.py or convert_mistral_weights_to_hf.py of transformers",
        ("*layers.0.attention.wq.weight",),
    ),
    Layout(
        "is in the layout of OpenAI's CLIP or of open_clip, not in that of transformers. Take the files beside it that transformers reads, "
        "or convert it with convert_clip_original_pytorch_to_hf.py of transformers",
        ("visual.transformer.resblocks.0.*",),
    ),
    Layout(
        "is in the layout of timm or of the code that came with its paper, not in that of transformers. Take the model from a repository "
        "that transformers reads",
        ("*blocks.0.attn.qkv.weight",),
    ),
    *(
        Layout(
            f"has tensors whose names begin with {prefix!r}: {tool} saved the model inside a wrapper. Save the module within "
            f"({inner}), or take the prefix off the names",
            (f"{prefix}*",),
        )
        for prefix, tool, inner in (
            ("_orig_mod.", "torch.compile", "model._orig_mod"),
            ("module.", "DistributedDataParallel", "model.module"),
            ("_fsdp_wrapped_module.", "FSDP", "model.module"),
        )
    ),
)


def told(source: TensorSource, folder: Path) -> InputError | None:
    """The error that names the layout of some tensors, if it is a known one."""
    where = source.files[0]
    for layout in LAYOUTS:
        if all(any(fnmatchcase(name, glob) for name in source.tensors) for glob in layout.tensors):
            return InputError(f"{where} {layout.what}.")
    for layout in LAYOUTS:
        for name in layout.files:
            if (folder / name).is_file():
                return InputError(f"{where} {layout.what} ({name} says so).")
    kinds = {info.dtype for info in source.tensors.values() if len(info.shape) == 2}
    small = sorted(kind.name for kind in kinds if kind.itemsize == 1 and kind != np.bool_)
    if small:
        return InputError(
            f"{where} has matrices of {', '.join(small)}: weights that some package quantised. {_PLAIN}."
        )
    return None


def check_settings(folder: Path) -> None:
    """Raises InputError if a folder's config.json is that of a layout which mmjax does not read, whatever form its tensors have."""
    try:
        settings = read_config(folder)
    except InputError:  # what is wrong with it is said where it is needed
        return
    if "text_config" not in settings and any(key in settings for key in _OF_LLAVA):
        raise InputError(f"{settings.where} {_LLAVA}.")
    if (folder / _ADAPTER).is_file():
        raise InputError(
            f"{folder} has a model and {_ADAPTER}, with which transformers would load an adapter on top of it. Merge the two "
            "(merge_and_unload of the package peft), or take that file away if the model alone is meant."
        )
