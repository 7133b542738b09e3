"""Tensors in one safetensors file, or in several with an index, as transformers and most of the hub write them."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from mmjax.errors import InputError
from mmjax.weights.disk import DiskFile, read_slice
from mmjax.weights.safetensors_header import Entry, damaged, parse_header, parse_json
from mmjax.weights.tensors import Index, TensorSource, quoted, spell_out

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Room for 20,000 tensors, at about 100 bytes for each; the largest model of the families that mmjax knows has 2,000.
_INDEX_LIMIT = 2 * 1024 * 1024
_OBJECTS = 1000  # it has three


class SafetensorsSource(TensorSource):
    """A `TensorSource` over safetensors files. Make it with `open_safetensors` or `open_sharded`.

    `metadata` has what all files say, text by name.
    """

    def __init__(self, paths: list[Path]):
        """Opens the files; no tensor may be in two of them. Raises InputError."""
        self.files = tuple(paths)
        metadata: dict[str, str] = {}
        self._entries: dict[str, tuple[DiskFile, Entry]] = {}
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            for path in paths:
                file = DiskFile(path)
                stack.callback(file.close)
                header = parse_header(file)
                metadata |= header.metadata
                self._add(file, header.tensors)
            self._stack = stack.pop_all()
        self.metadata: Mapping[str, Any] = metadata
        self.tensors = {name: entry.info for name, (_, entry) in self._entries.items()}

    def _add(self, file: DiskFile, tensors: dict[str, Entry]) -> None:
        for name, entry in tensors.items():
            if name in self._entries:
                raise InputError(f"Tensor {quoted(name)} is in {self._entries[name][0].path} and again in {file.path}.")
            self._entries[name] = (file, entry)

    def file_of(self, name: str) -> Path:
        """The file that a tensor is in. Raises KeyError for an unknown name."""
        return self._entries[name][0].path

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        file, entry = self._entries[name]
        shape, dtype = entry.info.shape, entry.info.dtype
        return read_slice(file, entry.offset, shape, dtype, spell_out(index, shape))

    def close(self) -> None:
        self._stack.close()


def open_safetensors(path: Path) -> SafetensorsSource:
    """One file. Raises InputError if it is damaged."""
    return SafetensorsSource([path])


def open_sharded(index: Path) -> SafetensorsSource:
    """The files beside an index, such as model.safetensors.index.json.

    Tensors that a file has and the index does not name are there too. Raises InputError if a file is missing or damaged, if it lacks a
    tensor that the index says it has, or if the index leads out of its folder.
    """
    places = _parse_index(index)
    paths = {file: index.parent / file for file in dict.fromkeys(places.values())}
    source = SafetensorsSource(list(paths.values()))
    for name, file in places.items():
        found = source.file_of(name) if name in source.tensors else None
        if found is None or found != paths[file]:
            source.close()
            where = f"in {quoted(found.name)}" if found else "in none of the files"
            raise InputError(f"{index} says that tensor {quoted(name)} is in {quoted(file)}, but it is {where}.")
    return source


def _parse_index(index: Path) -> dict[str, str]:
    """File name by tensor name, as the index has them."""
    with contextlib.closing(DiskFile(index)) as file:
        if file.size > _INDEX_LIMIT:
            raise damaged(index, f"it has {file.size} bytes; more than {_INDEX_LIMIT} is no index")
        data = file.read(0, file.size)
    if data.count(b"{") > _OBJECTS:
        raise damaged(index, f"it has more than {_OBJECTS} braces")
    places = parse_json(data, index).get("weight_map")
    if places == {}:
        raise damaged(index, "its weight_map names no tensor")
    if not isinstance(places, dict) or not all(isinstance(value, str) for value in places.values()):
        raise damaged(index, "its weight_map is not a file name for each tensor")
    for problem in _problems(index, places):
        raise InputError(f"{index} names the file {problem}")
    return places


def _problems(index: Path, places: dict[str, str]) -> Iterator[str]:
    """What is wrong with the files that an index names. Links are followed: the cache of huggingface_hub is made of them."""
    first = {file: name for name, file in reversed(places.items())}
    for file, name in first.items():
        tensor = f"{quoted(file)} for tensor {quoted(name)}"
        outside = ".." in PurePosixPath(file).parts or PureWindowsPath(file).drive or "\\" in file or file.startswith("/")
        if outside or not file.isprintable():
            yield f"{tensor}, which is not a plain path within its own folder."
        elif not file.endswith(".safetensors"):
            yield f"{tensor}, which is no safetensors file."
        elif not os.path.isfile(index.parent / file):
            yield f"{tensor}, which does not exist. Was the download interrupted?"
