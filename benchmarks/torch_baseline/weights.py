"""Which of mmjax's numbers are which of the model's: paths, layouts, and layers that are stacked there and modules here."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

# Parts of the names of transformers' modules, as mmjax has them; the names of the other modules are mmjax's already.
PARTS = {
    "vision.embeddings.class_embedding": "vision.class_token",
    "vision.embeddings.patch_embedding": "vision.patch",
    "vision.embeddings.position_embedding.weight": "vision.position",
    "decoder.embed_tokens.weight": "decoder.embedding",
    "decoder.lm_head.linear": "decoder.lm_head",
    ".layer.": ".",
    "input_layernorm": "norm_attention",
    "post_attention_layernorm": "norm_mlp",
    "layer_norm1": "norm_attention",
    "layer_norm2": "norm_mlp",
    "self_attn.": "attention.",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "output",
    "out_proj": "output",
    "mlp.fc1": "mlp.up",
    "mlp.fc2": "mlp.down",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    ".base.": ".",
    "lora_a.weight": "lora_a",
    "lora_b.weight": "lora_b",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where mmjax has a parameter.

    Attributes:
        path: of the array; layer: its index along the first axis, None where it is no part of a stack.
        transposed: linear maps are [inputs, outputs] there; patches: [rows, columns, channels, width] in one axis and the width.
    """

    path: str
    layer: int | None
    transposed: bool
    patches: bool


def places(model: nn.Module, spec: dict[str, Any]) -> dict[str, Place]:
    """The place of every parameter of the model by its name."""
    return {
        name: _place(name, value, spec["layer_ranges"]) for name, value in model.named_parameters()
    }


def _place(
    name: str, value: nn.Parameter, layer_ranges: Mapping[str, list[tuple[str, int]]]
) -> Place:
    for theirs, ours in PARTS.items():
        name = name.replace(theirs, ours)
    layer = None
    if stacked := re.match(r"(vision|decoder)\.layers\.(\d+)\.(.*)", name):
        part, layer = stacked[1], int(stacked[2])
        rows = [(path, index) for path, size in layer_ranges[part] for index in range(size)]
        path, layer = rows[layer]
        name = f"{part}.{path}.{stacked[3]}"
    path = name.replace(".", "/")
    patches = value.ndim == 4
    linear = path.endswith("/weight") and value.ndim == 2
    path = re.sub("/weight$", "/kernel" if linear or patches else "/scale", path)
    return Place(path, layer, linear or path.endswith(("/lora_a", "/lora_b")), patches)


@torch.no_grad()
def load(model: nn.Module, spec: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Copies mmjax's parameters in. Every number of both sides is used exactly once, or it is an error."""
    given = {(path, layer) for path, array in arrays.items() for layer in _layers(path, array)}
    parameters = dict(model.named_parameters())
    for name, place in places(model, spec).items():
        assert (place.path, place.layer) in given, (
            f"{name}: there is no {place.path} of layer {place.layer}, or it is used twice"
        )
        given.remove((place.path, place.layer))
        array = torch.from_numpy(
            np.array(arrays[place.path] if place.layer is None else arrays[place.path][place.layer])
        )
        value = parameters[name]
        if place.patches:
            array = array.reshape(*value.shape[2:], value.shape[1], value.shape[0]).permute(
                3, 2, 0, 1
            )
        array = array.T if place.transposed else array
        assert array.shape == value.shape, (
            f"{name} is {tuple(value.shape)}, {place.path} is {tuple(array.shape)}"
        )
        value.copy_(array)
    assert not given, f"not used: {sorted(map(str, given))}"


def _layers(path: str, array: np.ndarray) -> list[int | None]:
    return [*range(len(array))] if "layers" in path.split("/") else [None]
