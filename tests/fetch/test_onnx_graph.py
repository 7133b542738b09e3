"""Reading nodes and weights out of ONNX files, damaged ones too."""

import contextlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmjax.errors import InputError
from mmjax.fetch.dinov2_small import Node, read_graph
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
    graph = read_graph(MODEL)
    assert graph.nodes == (
        Node("/mlp/MatMul", "MatMul", ("x", "onnx::MatMul_7")),
        Node("/mlp/Add", "Add", ("mlp.bias", "/mlp/MatMul_output_0")),
    )
    assert set(graph.tensors) == {"onnx::MatMul_7", "mlp.bias"}  # integers are no weights
    np.testing.assert_array_equal(graph.tensors["onnx::MatMul_7"], KERNEL)
    np.testing.assert_array_equal(graph.tensors["mlp.bias"], BIAS)


def test_fields_that_are_not_read_are_skipped():
    """Of every wire type: an integer of ten bytes, 8 bytes, text, 4 bytes."""
    others = (
        field(99, 2**64 - 1)
        + varint(98 << 3 | 1)
        + b"8 bytes."
        + field(97, "text")
        + varint(96 << 3 | 5)
        + b"4..."
    )
    assert read_graph(others + MODEL).nodes == read_graph(MODEL).nodes


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "0 graphs"),
        (MODEL + MODEL, "2 graphs"),
        (MODEL[:-1], "ends behind the end"),
        (field(7, 3), "an integer stands where bytes are expected"),
        (varint(7 << 3 | 3), "unknown wire type 3"),
        (b"\xff" * 20, "longer than 64 bits"),
        (b"\xff", "index out of"),
        (model([], [tensor("a", KERNEL)[:-1]]), "ends behind the end"),
        (
            model([], [field(1, 5) + field(2, 1) + field(8, "a") + field(9, b"1234")]),
            "cannot reshape",
        ),
        (
            model([], [field(1, 2**64 - 1) + field(2, 1) + field(8, "a") + field(9, b"1234")]),
            "damaged",
        ),
        (model([field(3, b"\xff")], []), "utf-8"),
    ],
)
def test_damage_is_one_clear_message(data, said):
    with pytest.raises(InputError, match=r"^The ONNX file is damaged: .*\.$") as error:
        read_graph(data)
    assert said in str(error.value)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(MODEL) - 1), st.binary(max_size=12), st.integers(0, 12))
@example(0, b"", 0)
def test_any_damage_is_met_or_harmless(at, inserted, removed):
    with contextlib.suppress(InputError):
        graph = read_graph(MODEL[:at] + inserted + MODEL[at + removed :])
        assert sum(tensor.nbytes for tensor in graph.tensors.values()) <= len(MODEL) + 12
