"""Reading nodes and weights out of ONNX files, damaged ones too."""

import numpy as np
import pytest

from mmjax.errors import InputError
from mmjax.fetch.dinov2_small import read_graph
from tests.fetch.onnx_files import field, model, node, tensor, varint

KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3)
BIAS = np.array([0.5, -1e30, 3], np.float32)
MODEL = model(
    [
        node("/mlp/MatMul", "MatMul", ["x", "onnx::MatMul_7"]),
        node("/mlp/Add", "Add", ["mlp.bias", "/mlp/MatMul_output_0"]),
    ],
    [
        tensor("onnx::MatMul_7", KERNEL),
        tensor("mlp.bias", BIAS, packed=False),
        tensor("axes", np.array([1, 300], np.int64)),
    ],
)


def test_nodes_and_float_tensors():
    nodes, tensors = read_graph(MODEL)
    assert [(node.name, node.op_type, list(node.input)) for node in nodes] == [
        ("/mlp/MatMul", "MatMul", ["x", "onnx::MatMul_7"]),
        ("/mlp/Add", "Add", ["mlp.bias", "/mlp/MatMul_output_0"]),
    ]
    assert set(tensors) == {"onnx::MatMul_7", "mlp.bias"}  # integers are no weights
    np.testing.assert_array_equal(tensors["onnx::MatMul_7"], KERNEL)
    np.testing.assert_array_equal(tensors["mlp.bias"], BIAS)


def test_fields_that_are_not_declared_are_skipped():
    others = field(99, 2**64 - 1) + varint(98 << 3 | 1) + b"8 bytes." + field(97, "text")
    nodes, _ = read_graph(others + MODEL)
    assert [node.name for node in nodes] == ["/mlp/MatMul", "/mlp/Add"]


@pytest.mark.parametrize(
    "data",
    [
        MODEL[:-1],
        b"\xff" * 20,
        model([], [tensor("a", KERNEL)[:-1]]),
        model([], [field(1, 5) + field(2, 1) + field(8, "a") + field(9, b"1234")]),
        model([], [field(1, 2**64 - 1) + field(2, 1) + field(8, "a") + field(9, b"12345")]),
        model([field(3, b"\xff")], []),
    ],
    ids=["short", "noise", "short tensor", "shape", "odd bytes", "name"],
)
def test_damage_is_one_clear_message(data):
    with pytest.raises(InputError, match=r"^The ONNX file is damaged: .*\.$"):
        read_graph(data)
