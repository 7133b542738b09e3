"""Tensors in a GGUF file, the format of llama.cpp: quantised numbers become float32 when they are read.

A file begins with key/value fields, and then name, shape, type and place of every tensor. `gguf.GGUFReader` is not used: it maps the file,
so that what is read stays resident; it believes every count that a file claims (an array of 2**50 bytes is followed until memory ends), and
it answers damage with whatever numpy raises. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import io
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmjax.errors import InputError
from mmjax.weights.tensors import (
    DiskFile,
    Index,
    Ranges,
    TensorInfo,
    TensorSource,
    damaged,
    quoted,
    read_slice,
    spell_out,
)

MAGIC = b"GGUF"
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
_VERSIONS = (2, 3)
# How many numbers are dequantised at once. The package holds its result twice meanwhile.
_CHUNK = 1024 * 1024

# SmolLM2, with 49,152 tokens, has 150,000 items in 2 MB of fields; Gemma, with 262,144, has 790,000. Experts of a layer are one tensor, so
# that the largest models have about a thousand.
_BYTES = 64 * 1024 * 1024
_ITEMS = 1280 * 1024
# Of which each takes a microsecond; 256,000 tokens and as many merges are the most that is published.
_TEXTS = 640 * 1024
_ENTRIES = 16 * 1024

_SCALARS = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9
_MAX_AXES = 4
_ALIGNMENT = "general.alignment"
_DEFAULT_ALIGNMENT = 32


class RawTensor(NamedTuple):
    """A tensor as the file describes it: shape with the fastest axis last, a number for its type, bytes from the beginning of the file."""

    shape: tuple[int, ...]
    kind: int
    offset: int


class _Reader:
    """Reads forward. Whatever the file claims, it takes no more than is there and no more than the limits."""

    def __init__(self, file: DiskFile):
        self.path = file.path
        self.place = 0
        self.end = min(file.size, _BYTES)
        self.items = self.texts = 0
        self._limited = file.size > _BYTES
        self._stream = io.BufferedReader(_Stream(file), 1024 * 1024)

    def take(self, length: int) -> bytes:
        if length > self.end - self.place:
            limit = (
                f"its header is longer than {_BYTES} bytes"
                if self._limited
                else f"it ends at byte {self.end}, within its header"
            )
            raise damaged(self.path, limit)
        self.place += length
        return self._stream.read(length)

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def count(self, what: str, most: int = _ITEMS) -> int:
        """How many things follow."""
        number = self.number(8)
        self.items += number
        if number > most or self.items > _ITEMS:
            raise damaged(self.path, f"it claims {number} {what}")
        return number

    def text(self, what: str) -> str:
        try:
            return self.take(self.number(8)).decode("utf-8")
        except UnicodeDecodeError:
            raise damaged(self.path, f"{what} is not UTF-8") from None

    def value(self, kind: int, key: str) -> Any:
        """A value of one of GGUF's types, as Python's own: numbers, bool, str, list."""
        if kind == _STRING:
            return self.text(key)
        if kind in _SCALARS:
            return self._scalars(kind, 1)[0]
        if kind != _ARRAY:
            raise damaged(self.path, f"{key} has the unknown type {kind}")
        inner = self.number(4)
        if inner in _SCALARS:
            return self._scalars(inner, self.count(f"values of {key}"))
        if inner != _STRING:
            raise damaged(self.path, f"{key} is an array of the type {inner}")
        count = self.count(f"texts of {key}")
        self.texts += count
        if self.texts > _TEXTS:
            raise damaged(self.path, f"it claims {self.texts} texts")
        # As `text`, so many times; vocabularies are long, and every call counts.
        read, found = self._stream.read, []
        for _ in range(count):
            length = int.from_bytes(read(8), "little")
            self.place += 8 + length
            if self.place > self.end:
                self.place = self.end
                self.take(1)
            found.append(read(length))
        try:
            return [text.decode("utf-8") for text in found]
        except UnicodeDecodeError:
            raise damaged(self.path, f"{key} is not UTF-8") from None

    def _scalars(self, kind: int, count: int) -> list[Any]:
        dtype = np.dtype(_SCALARS[kind])
        values = np.frombuffer(
            self.take(count * dtype.itemsize), np.uint8 if dtype == np.bool_ else dtype
        )
        return (values != 0).tolist() if dtype == np.bool_ else values.tolist()


class _Stream(io.RawIOBase):
    """A file from its beginning on, for buffering."""

    def __init__(self, file: DiskFile):
        self._file, self._place = file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._file.size - self._place)
        self._file.read_into(np.frombuffer(buffer, np.uint8)[:length], self._place)
        self._place += length
        return length


def parse_header(file: DiskFile) -> tuple[dict[str, Any], dict[str, RawTensor]]:
    """Fields and tensors by name. Raises InputError, naming the file, where the header is damaged; places are checked by the caller."""
    reader = _Reader(file)
    if reader.take(len(MAGIC)) != MAGIC:
        raise InputError(f"{file.path} is no GGUF file.")
    version = reader.number(4)
    if version not in _VERSIONS:
        shown = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
        raise InputError(
            f"{file.path} is GGUF, but {shown}. mmjax reads versions 2 and 3, little-endian."
        )
    tensor_count, field_count = (reader.count(what, _ENTRIES) for what in ("tensors", "fields"))
    fields: dict[str, Any] = {}
    for _ in range(field_count):
        key = reader.text("the name of a field")
        if key in fields:
            raise damaged(file.path, f"{quoted(key)} stands in it twice")
        fields[key] = reader.value(reader.number(4), quoted(key))
    tensors: dict[str, RawTensor] = {}
    for _ in range(tensor_count):
        name = reader.text("the name of a tensor")
        if name in tensors:
            raise damaged(file.path, f"tensor {quoted(name)} stands in it twice")
        axes = reader.number(4)
        if not 1 <= axes <= _MAX_AXES:
            raise damaged(file.path, f"tensor {quoted(name)} claims {axes} axes")
        shape = tuple(reversed([reader.number(8) for _ in range(axes)]))
        if 0 in shape or math.prod(shape) > 2**60:
            raise damaged(file.path, f"tensor {quoted(name)} claims the shape {shape}")
        tensors[name] = RawTensor(shape, reader.number(4), reader.number(8))
    alignment = fields.get(_ALIGNMENT, _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        shown = (
            quoted(alignment)
            if isinstance(alignment, str)
            else "a list"
            if isinstance(alignment, list)
            else alignment
        )
        raise damaged(file.path, f"{_ALIGNMENT} is {shown}, which is no power of two")
    start = -(-reader.place // alignment) * alignment
    return fields, {name: raw._replace(offset=start + raw.offset) for name, raw in tensors.items()}


class _QuantizedTensor(NamedTuple):
    """Where a tensor lies, and in which form: blocks of `numbers` numbers along the last axis in `width` bytes each."""

    raw: RawTensor
    kind: Any
    numbers: int
    width: int

    @property
    def blocks(self) -> tuple[int, ...]:
        """The shape of the tensor in bytes, with one axis more: [..., blocks, bytes of a block]."""
        return (*self.raw.shape[:-1], self.raw.shape[-1] // self.numbers, self.width)


class GGUFSource(TensorSource):
    """A `TensorSource` over one GGUF file, with its names.

    Every tensor is float32 and has the shape that the model has it in, (out, in) for a matrix. Beside the part that is read, about 20 MB of
    memory are used, or three times the longest row. `metadata` has the fields as Python values: "llama.block_count": 30,
    "tokenizer.ggml.tokens": [...].
    """

    def __init__(self, path: Path):
        """Raises InputError if the file is damaged, has tensors of another type than `KINDS`, or if the package `gguf` is not installed."""
        try:
            import gguf
        except ImportError:
            raise InputError(
                f"{path} is a GGUF file. Reading it needs the package gguf: pip install 'mmjax[gguf]'."
            ) from None
        self._package: types.ModuleType = gguf
        self._file = DiskFile(path)
        self.files = (path,)
        try:
            fields, tensors = parse_header(self._file)
            split = fields.get("split.count", 0)
            if type(split) is not int:
                raise damaged(path, "split.count is not a number")
            if split > 1:
                raise InputError(
                    f"{path} is one of {split} files. Join them with `llama-gguf-split --merge` first."
                )
            known = {kind.value: kind for kind in self._package.GGMLQuantizationType}
            self._entries = {
                name: self._entry(name, raw, known.get(raw.kind)) for name, raw in tensors.items()
            }
            end, last = 0, ""
            for name, entry in sorted(self._entries.items(), key=lambda item: item[1].raw.offset):
                if entry.raw.offset < end:
                    raise damaged(path, f"tensor {quoted(name)} overlaps {quoted(last)}")
                end, last = entry.raw.offset + math.prod(entry.blocks), name
                if end > self._file.size:
                    reason = f"tensor {quoted(last)} ends at byte {end}, but the file has {self._file.size}; it is truncated"
                    raise damaged(path, reason)
        except BaseException:
            self.close()
            raise
        self.metadata: Mapping[str, Any] = fields
        self.tensors = {
            name: TensorInfo(entry.raw.shape, np.dtype(np.float32))
            for name, entry in self._entries.items()
        }

    def _entry(self, name: str, raw: RawTensor, kind: Any) -> _QuantizedTensor:
        if kind is None or kind.name not in KINDS:
            shown = (
                f"{raw.kind}, which is unknown"
                if kind is None
                else f"{kind.name}, which mmjax cannot read"
            )
            raise InputError(
                f"{self._file.path}: tensor {quoted(name)} is quantised as {shown}. It reads {', '.join(KINDS)}."
            )
        numbers, width = self._package.GGML_QUANT_SIZES[kind]
        if raw.shape[-1] % numbers:
            raise damaged(
                self._file.path,
                f"rows of tensor {quoted(name)} have {raw.shape[-1]} numbers, {kind.name} has {numbers} in a block",
            )
        return _QuantizedTensor(raw, kind, numbers, width)

    def stored_as(self, name: str) -> str:
        """One of `KINDS`."""
        return str(self._entries[name].kind.name)

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        entry = self._entries[name]
        ranges = spell_out(index, entry.raw.shape)
        result = np.empty([stop - start for start, stop in ranges], np.float32)
        self._fill(result, entry, ranges)
        return result

    def _fill(self, out: np.ndarray, entry: _QuantizedTensor, ranges: Ranges) -> None:
        """Reads and dequantises the part of a tensor, in halves until they are small enough."""
        if not out.size:
            return
        axis = next((axis for axis, length in enumerate(out.shape[:-1]) if length > 1), None)
        if out.size > _CHUNK and axis is not None:
            half = out.shape[axis] // 2
            start, stop = ranges[axis]
            parts = np.split(out, [half], axis)
            self._fill(
                parts[0], entry, (*ranges[:axis], (start, start + half), *ranges[axis + 1 :])
            )
            self._fill(parts[1], entry, (*ranges[:axis], (start + half, stop), *ranges[axis + 1 :]))
            return
        start, stop = ranges[-1]
        first, last = start // entry.numbers, -(-stop // entry.numbers)
        where = (*ranges[:-1], (first, last), (0, entry.width))
        blocks = read_slice(self._file, entry.raw.offset, entry.blocks, np.dtype(np.uint8), where)
        rows = self._package.dequantize(blocks.reshape(*out.shape[:-1], -1), entry.kind)
        begin = first * entry.numbers
        out[...] = rows[..., start - begin : stop - begin]

    def close(self) -> None:
        self._file.close()
