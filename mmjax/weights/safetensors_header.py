"""The first bytes of a safetensors file: eight for the length of a JSON text, the text, and then the tensors without gaps.

The `safetensors` package is not used to read: over a memory map it keeps every page that it read resident, its other way of reading reads
the whole tensor for each slice, it knows no 8-bit floats in numpy, and it takes the last of two tensors of one name. Format:
https://github.com/huggingface/safetensors#format
"""

import collections
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mmjax.errors import InputError
from mmjax.weights.disk import DiskFile
from mmjax.weights.tensors import TensorInfo, quoted

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

# Room for 8,000 tensors, at about 130 bytes for each. Of the families that mmjax knows, a whole model has a quarter of that. A hostile text
# of this length keeps the parser busy for half a second.
_HEADER_LIMIT = 1024 * 1024
_LENGTH = 8
_KEYS = {"dtype", "shape", "data_offsets"}
_MAX_AXES = 32
_MAX_BYTES = 2**63 - 1


class Entry(NamedTuple):
    """Where a tensor lies: bytes from the beginning of its file."""

    info: TensorInfo
    offset: int


class Header(NamedTuple):
    """What a safetensors file says of itself."""

    metadata: dict[str, str]
    tensors: dict[str, Entry]


def parse_header(file: DiskFile) -> Header:
    """Reads and checks the header. Raises InputError, naming the file and where possible the tensor, for whatever is not as it must be."""
    if file.size < _LENGTH:
        raise damaged(file.path, f"it has {file.size} bytes, less than the shortest header")
    length = int.from_bytes(file.read(0, _LENGTH), "little")
    if length > file.size - _LENGTH:
        raise damaged(file.path, f"its header claims {length} bytes, but the file has {file.size}; it is truncated or of another format")
    if length > _HEADER_LIMIT:
        raise damaged(file.path, f"its header claims {length} bytes; more than {_HEADER_LIMIT} is no list of tensors")
    content = parse_json(file.read(_LENGTH, length), file.path)
    metadata = content.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(file.path, f"{METADATA} is not text by name")
    start = _LENGTH + length
    tensors = {name: _entry(value, start, name, file.path) for name, value in content.items()}
    _check_places(tensors, start, file)
    return Header(metadata, tensors)


def _entry(value: Any, start: int, name: str, path: Path) -> Entry:
    """One tensor, checked by itself."""
    if not isinstance(value, dict) or value.keys() != _KEYS:
        raise damaged(path, f"tensor {quoted(name)} must be described by {', '.join(sorted(_KEYS))}")
    kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        shown = quoted(kind) if isinstance(kind, str) else "no text"
        raise InputError(f"{path}: tensor {quoted(name)} has the dtype {shown}, which mmjax cannot read. It reads {', '.join(DTYPES)}.")
    if not _is_sizes(shape) or len(shape) > _MAX_AXES:
        raise damaged(path, f"the shape of tensor {quoted(name)} is not a list of at most {_MAX_AXES} sizes")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise damaged(path, f"data_offsets of tensor {quoted(name)} are not a begin and an end")
    info = TensorInfo(tuple(shape), DTYPES[kind])
    # numpy refuses shapes that are too large without the axes of size zero.
    if math.prod([size or 1 for size in shape]) * info.dtype.itemsize > _MAX_BYTES:
        raise damaged(path, f"tensor {quoted(name)} is larger than any file")
    if info.nbytes != offsets[1] - offsets[0]:
        reason = f"tensor {quoted(name)} is {kind} of shape {shape}, {info.nbytes} bytes, but has {offsets[1] - offsets[0]}"
        raise damaged(path, reason)
    return Entry(info, start + offsets[0])


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all([type(size) is int and 0 <= size <= _MAX_BYTES for size in value])  # noqa: C419 (twice as fast)


def _check_places(tensors: Mapping[str, Entry], start: int, file: DiskFile) -> None:
    """Tensors lie one behind the other, from the header to the end of the file."""
    end, last = start, None
    places = sorted((entry.offset, entry.info.nbytes, name) for name, entry in tensors.items())
    for offset, nbytes, name in places:
        if offset < end:
            raise damaged(file.path, f"{_shown(name)} overlaps {_shown(last)}")
        if offset > end:
            raise damaged(file.path, f"between {_shown(last)} and {_shown(name)} are {offset - end} bytes that belong to no tensor")
        end, last = offset + nbytes, name
        if end > file.size:
            raise damaged(file.path, f"{_shown(name)} ends at byte {end}, but the file has {file.size}; it is truncated")
    if end < file.size:
        raise damaged(file.path, f"{file.size - end} bytes after {_shown(last)} belong to no tensor")


def _shown(name: str | None) -> str:
    return "the header" if name is None else f"tensor {quoted(name)}"


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
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


def damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is damaged: {reason}.")
