"""Which format a path has, and what is said of the ones that have none."""

import os
import pathlib
import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from mmjax.errors import InputError
from mmjax.weights.open import open_weights
from mmjax.weights.safetensors_writing import write_safetensors
from tests.weights.files import arrays, gguf_bytes, listed, safetensors_bytes, write_index


def refused(path: pathlib.Path, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        open_weights(path)
    for part in (str(path), *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "connector.safetensors", "model.fp16.safetensors"]
)
def test_the_only_file_of_a_folder(tmp_path: pathlib.Path, name: str):
    save_file(arrays(), tmp_path / name)
    (tmp_path / "pytorch_model.bin").write_bytes(b"beside it")
    with open_weights(tmp_path) as source:
        assert source.files == (tmp_path / name,)


def test_safetensors_come_before_gguf_in_a_folder(tmp_path: pathlib.Path):
    (tmp_path / "model.gguf").write_bytes(gguf_bytes())
    with open_weights(tmp_path) as source:
        assert source.files == (tmp_path / "model.gguf",)
    write_safetensors(tmp_path, listed(arrays()))
    with open_weights(tmp_path) as source:
        assert source.files == (tmp_path / "model.safetensors",)


def test_the_content_counts_not_the_name(tmp_path: pathlib.Path):
    (tmp_path / "blob").write_bytes(gguf_bytes())
    with open_weights(tmp_path / "blob") as source:
        assert not source.tensors
    save_file(arrays(), tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "other")
    with open_weights(tmp_path / "other") as source:
        assert set(source.tensors) == set(arrays())


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480])
def test_a_header_whose_length_looks_like_a_pickle(tmp_path: pathlib.Path, length: int):
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(b"{}".ljust(length)))
    with open_weights(tmp_path) as source:
        assert not source.tensors


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "pytorch_model.bin.index.json"],
)
def test_pickles_are_refused_with_the_reason(tmp_path: pathlib.Path, name: str):
    (tmp_path / name).write_bytes(b"whatever it is")
    for path in (tmp_path, tmp_path / name):
        refused(path, name, "pickle", "Convert it to safetensors")


@pytest.mark.parametrize(
    "data",
    [pickle.dumps({"a": 1}), pickle.dumps({"a": 1}, 2), b"PK\x03\x04" + bytes(40)],
    ids=["4", "2", "zip"],
)
def test_pickles_of_another_name_are_refused(tmp_path: pathlib.Path, data: bytes):
    (tmp_path / "model.safetensors").write_bytes(data)
    refused(tmp_path, "pickle")


def test_nothing_usable(tmp_path: pathlib.Path):
    refused(tmp_path / "org" / "name", "hf:OWNER/NAME")
    refused(tmp_path, "no weights", "nothing", "safetensors")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "config.json")
    refused(tmp_path / "config.json", "no file of weights")
    np.savez(tmp_path / "a.npz", a=np.zeros(1))
    refused(tmp_path / "a.npz", "numpy")
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused(tmp_path, "empty")
    (tmp_path / "model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    refused(tmp_path, "git lfs pull")


def test_more_than_one_choice(tmp_path: pathlib.Path):
    for name in ("a", "b"):
        save_file(arrays(), tmp_path / f"{name}.safetensors")
    refused(tmp_path, "a.safetensors, b.safetensors", "Name the one")
    save_file(arrays(), tmp_path / "model.safetensors")
    write_index(tmp_path, {"scale": "model.safetensors"})
    refused(tmp_path, "both")


def test_parts_without_an_index(tmp_path: pathlib.Path):
    """What an interrupted download, or a killed writer, may leave."""
    write_safetensors(tmp_path, listed(arrays()), shard_bytes=100)
    (tmp_path / "model.safetensors.index.json").unlink()
    refused(tmp_path, "no model.safetensors.index.json")
    for path in sorted(tmp_path.iterdir())[1:]:
        path.unlink()
    refused(tmp_path, "no model.safetensors.index.json")


def test_a_link_to_nothing(tmp_path: pathlib.Path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    refused(tmp_path, "cannot be opened")
    refused(tmp_path / "model.safetensors", "cannot be opened")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(tmp_path: pathlib.Path):
    write_safetensors(tmp_path, listed(arrays()))
    (tmp_path / "model.safetensors").chmod(0)
    refused(tmp_path, "Permission denied")
    tmp_path.chmod(0)
    try:
        refused(tmp_path, "Permission denied")
    finally:
        tmp_path.chmod(0o700)
