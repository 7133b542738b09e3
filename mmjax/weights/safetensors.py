"""Tensors in one safetensors file, or in several with an index, as transformers and most of the hub write them.

A file begins with eight bytes for the length of a JSON text, the text, and then has the tensors without gaps. The `safetensors` package
checks that it is so. Numbers are not read through it: over a memory map it keeps every page that it read resident, its other way of reading
reads the whole tensor for each slice, and it knows no 8-bit floats in numpy. Nor does it mind two tensors of one name. Format:
https://github.com/huggingface/safetensors#format
"""

import collections
import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from mmjax.errors import InputError
from mmjax.weights.tensors import (
    DiskFile,
    Index,
    TensorInfo,
    TensorSource,
    damaged,
    quoted,
    read_slice,
    spell_out,
)

# In the order in which the `safetensors` package sorts tensors when it writes, narrow to wide.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "C64": np.dtype(np.complex64),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
}
METADATA = "__metadata__"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Room for 8,000 tensors, at about 130 bytes for each. Of the families that mmjax knows, a whole model has a quarter of that. A hostile text
# of this length keeps the parser busy for half a second.
_HEADER_LIMIT = 1024 * 1024
_LENGTH = 8
_MAX_AXES = 32
_MAX_BYTES = 2**63 - 1
# Room for 20,000 tensors, at about 100 bytes for each; the largest model of the families that mmjax knows has 2,000.
_INDEX_LIMIT = 2 * 1024 * 1024
_OBJECTS = 1000  # an index has three


def parse_header(file: DiskFile) -> tuple[dict[str, str], dict[str, tuple[TensorInfo, int]]]:
    """Metadata, text by name; and by name what each tensor is, and at which byte it begins. Raises InputError if the file is damaged."""
    length = int.from_bytes(file.read(0, min(file.size, _LENGTH)), "little")
    if _HEADER_LIMIT < length <= file.size - _LENGTH:
        raise damaged(
            file.path,
            f"its header claims {length} bytes; more than {_HEADER_LIMIT} is no list of tensors",
        )
    try:
        with safetensors.safe_open(file.path, "numpy"):
            pass
    except safetensors.SafetensorError as error:
        reason = quoted(str(error).removeprefix("Error while deserializing header: "))
        raise InputError(
            f"{file.path} is damaged, truncated or of another format; the package safetensors says {reason}."
        ) from None
    content = _parse_json(file.read(_LENGTH, length), file.path)
    metadata = content.pop(METADATA, None) or {}
    tensors = {}
    for name, entry in content.items():
        kind, shape = entry["dtype"], entry["shape"]
        if kind not in DTYPES:
            raise InputError(
                f"{file.path}: tensor {quoted(name)} has the dtype {kind}, which mmjax cannot read. It reads {', '.join(DTYPES)}."
            )
        # numpy refuses shapes that are too large without the axes of size zero.
        whole = math.prod(size or 1 for size in shape) * DTYPES[kind].itemsize
        if len(shape) > _MAX_AXES or whole > _MAX_BYTES:
            raise damaged(file.path, f"tensor {quoted(name)} has the shape of no array")
        start = _LENGTH + length + entry["data_offsets"][0]
        tensors[name] = TensorInfo(tuple(shape), DTYPES[kind]), start
    return metadata, tensors


def _parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """A JSON object in which no key stands twice. Raises InputError naming the file."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise damaged(path, f"{quoted(twice)} stands in it twice")
        return found

    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except InputError:
        raise
    except RecursionError:
        raise damaged(path, "its JSON is nested too deeply") from None
    except ValueError as error:
        raise damaged(path, f"its JSON cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise damaged(path, "its JSON is not an object")
    return content


class SafetensorsSource(TensorSource):
    """A `TensorSource` over safetensors files. `metadata` has what all files say, text by name."""

    def __init__(self, *paths: Path):
        """Opens the files; no tensor may be in two of them. Raises InputError."""
        self.files = paths
        metadata: dict[str, str] = {}
        self._places: dict[str, tuple[DiskFile, int]] = {}
        self.tensors: dict[str, TensorInfo] = {}
        with contextlib.ExitStack() as stack:
            for path in paths:
                file = DiskFile(path)
                stack.callback(file.close)
                said, tensors = parse_header(file)
                metadata |= said
                for name, (info, offset) in tensors.items():
                    if name in self.tensors:
                        raise InputError(
                            f"Tensor {quoted(name)} is in {self.file_of(name)} and again in {path}."
                        )
                    self.tensors[name], self._places[name] = info, (file, offset)
            self._stack = stack.pop_all()
        self.metadata: Mapping[str, Any] = metadata

    def file_of(self, name: str) -> Path:
        """The file that a tensor is in. Raises KeyError for an unknown name."""
        return self._places[name][0].path

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        info, (file, offset) = self.tensors[name], self._places[name]
        return read_slice(file, offset, info.shape, info.dtype, spell_out(index, info.shape))

    def close(self) -> None:
        self._stack.close()


def open_sharded(index: Path) -> SafetensorsSource:
    """The files beside an index, such as model.safetensors.index.json.

    Tensors that a file has and the index does not name are there too. Raises InputError if a file is missing or damaged, if it lacks a
    tensor that the index says it has, or if the index leads out of its folder.
    """
    with contextlib.closing(DiskFile(index)) as file:
        if file.size > _INDEX_LIMIT:
            raise damaged(index, f"it has {file.size} bytes; more than {_INDEX_LIMIT} is no index")
        data = file.read(0, file.size)
    if data.count(b"{") > _OBJECTS:
        raise damaged(index, f"it has more than {_OBJECTS} braces")
    places = _parse_json(data, index).get("weight_map")
    if places == {}:
        raise damaged(index, "its weight_map names no tensor")
    if not isinstance(places, dict) or not all(isinstance(value, str) for value in places.values()):
        raise damaged(index, "its weight_map is not a file name for each tensor")
    # Links are followed: the cache of huggingface_hub is made of them.
    for name, tensor in {name: tensor for tensor, name in reversed(places.items())}.items():
        named = f"{index} names the file {quoted(name)} for tensor {quoted(tensor)}"
        outside = (
            ".." in PurePosixPath(name).parts
            or PureWindowsPath(name).drive
            or "\\" in name
            or name.startswith("/")
        )
        if outside or not name.isprintable():
            raise InputError(f"{named}, which is not a plain path within its own folder.")
        if not name.endswith(".safetensors"):
            raise InputError(f"{named}, which is no safetensors file.")
        if not os.path.isfile(index.parent / name):
            raise InputError(f"{named}, which does not exist. Was the download interrupted?")
    paths = {name: index.parent / name for name in dict.fromkeys(places.values())}
    source = SafetensorsSource(*paths.values())
    for tensor, name in places.items():
        found = source.file_of(tensor) if tensor in source.tensors else None
        if found is None or found != paths[name]:
            source.close()
            where = f"in {quoted(found.name)}" if found else "in none of the files"
            raise InputError(
                f"{index} says that tensor {quoted(tensor)} is in {quoted(name)}, but it is {where}."
            )
    return source
