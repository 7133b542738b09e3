"""Tensors to safetensors and back, against the `safetensors` package in both directions."""

import json
import pathlib
import weakref

import hypothesis
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import strategies as st

from mmjax.weights import safetensors_writing
from mmjax.weights.open import open_weights
from mmjax.weights.safetensors_writing import write_safetensors
from mmjax.weights.tensors import TensorInfo
from tests.weights.files import arrays, listed, same

INDEX = "model.safetensors.index.json"


def everything(path: pathlib.Path) -> dict[str, np.ndarray]:
    with open_weights(path) as source:
        return {name: source.read(name) for name in source.tensors}


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_file_has_the_bytes_that_the_package_writes(tmp_path: pathlib.Path):
    write_safetensors(tmp_path, listed(arrays()))
    safetensors.numpy.save_file(arrays(), tmp_path / "package.safetensors", {"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (
        tmp_path / "package.safetensors"
    ).read_bytes()


def test_what_was_written_is_read(tmp_path: pathlib.Path):
    write_safetensors(tmp_path, listed(arrays()))
    found = everything(tmp_path)
    assert set(found) == set(arrays())
    assert all(same(found[name], array) for name, array in arrays().items())
    with open_weights(tmp_path) as source:
        assert source.metadata == {"format": "pt"}
        assert source.files == (tmp_path / "model.safetensors",)
        assert source.tensors["scale"] == TensorInfo((), np.dtype(np.float32))


def test_what_the_package_wrote_is_read(tmp_path: pathlib.Path):
    path = tmp_path / "package.safetensors"
    safetensors.numpy.save_file(arrays(), path, {"format": "np", "by": "a test"})
    with open_weights(path) as source:
        assert source.metadata == {"format": "np", "by": "a test"}
    found = everything(path)
    assert set(found) == set(arrays())
    assert all(same(found[name], array) for name, array in arrays().items())


def test_the_package_reads_a_sharded_folder(tmp_path: pathlib.Path):
    write_safetensors(tmp_path / "model", listed(arrays()), shard_bytes=100)
    paths = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(paths) > 2
    index = json.loads((tmp_path / "model" / INDEX).read_text())
    assert index["metadata"] == {"total_size": sum(array.nbytes for array in arrays().values())}
    assert set(index["weight_map"]) == set(arrays())
    for name, file in index["weight_map"].items():
        with safetensors.safe_open(tmp_path / "model" / file, "numpy") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert opened.get_slice(name).get_shape() == list(arrays()[name].shape)
    for path in paths:
        size = sum(
            arrays()[name].nbytes for name, file in index["weight_map"].items() if file == path.name
        )
        assert size <= 100 or list(index["weight_map"].values()).count(path.name) == 1


def test_a_sharded_folder_is_read(tmp_path: pathlib.Path):
    write_safetensors(tmp_path / "model", listed(arrays()), shard_bytes=100)
    for path in (tmp_path / "model", tmp_path / "model" / INDEX):
        found = everything(path)
        assert set(found) == set(arrays())
        assert all(same(found[name], array) for name, array in arrays().items())
    with open_weights(tmp_path / "model") as source:
        assert len(source.files) > 2


@hypothesis.given(st.data())
@hypothesis.settings(deadline=None, max_examples=50)
def test_slices_equal_those_of_the_package(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    array = np.arange(7 * 3 * 5, dtype=np.float32).reshape(7, 3, 5)
    path = tmp_path_factory.getbasetemp() / "sliced.safetensors"
    safetensors.numpy.save_file({"before": np.zeros(3, np.uint8), "a": array}, path)
    starts = [data.draw(st.integers(0, size - 1)) for size in array.shape]
    index = tuple(
        slice(start, data.draw(st.integers(start + 1, size)))
        for start, size in zip(starts, array.shape, strict=True)
    )
    with open_weights(path) as source, safetensors.safe_open(path, "numpy") as opened:
        found = source.read("a", index)
        assert same(found, np.ascontiguousarray(opened.get_slice("a")[index]))
    np.testing.assert_array_equal(found, array[index])


def test_the_bytes_depend_on_the_tensors_alone(tmp_path: pathlib.Path):
    write_safetensors(tmp_path / "a", listed(arrays()), shard_bytes=100)
    backwards = [
        (name, info, lambda array=array: array) for name, info, array in reversed(listed(arrays()))
    ]
    write_safetensors(tmp_path / "b", backwards, shard_bytes=100)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_one_tensor_is_made_at_a_time(tmp_path: pathlib.Path):
    alive, most = [], 0

    def make() -> np.ndarray:
        nonlocal most
        array = np.zeros(4, np.float32)
        alive.append(True)
        weakref.finalize(array, alive.pop)
        most = max(most, len(alive))
        return array

    info = TensorInfo((4,), np.dtype(np.float32))
    write_safetensors(tmp_path / "model", [(f"t{i}", info, make) for i in range(5)])
    assert most == 1 and not alive


def test_arrays_of_any_memory_order_are_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """A transposed array, in several chunks."""
    monkeypatch.setattr(safetensors_writing, "_CHUNK", 50)
    array = np.arange(35, dtype=np.float32).reshape(5, 7).T
    write_safetensors(tmp_path, listed({"a": array}))
    np.testing.assert_array_equal(everything(tmp_path)["a"], array)


def test_an_array_that_is_not_what_was_announced_is_a_mistake(tmp_path: pathlib.Path):
    with pytest.raises(AssertionError):
        write_safetensors(
            tmp_path / "model",
            [("a", TensorInfo((3,), np.dtype(np.float32)), np.zeros(4, np.float32))],
        )
    with pytest.raises(AssertionError):
        write_safetensors(tmp_path / "model", listed({"a": np.zeros(1)}) * 2)
