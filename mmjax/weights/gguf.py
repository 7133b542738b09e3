"""Tensors in a GGUF file, the format of llama.cpp: quantised numbers become float32 when they are read."""

import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmjax.errors import InputError
from mmjax.weights.disk import DiskFile, read_slice
from mmjax.weights.gguf_header import Raw, parse_header
from mmjax.weights.safetensors_header import damaged
from mmjax.weights.tensors import Index, Ranges, TensorInfo, TensorSource, quoted, spell_out

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")

# How many numbers are dequantised at once. The package holds its result twice meanwhile.
_CHUNK = 1024 * 1024


class _Entry(NamedTuple):
    """Where a tensor lies, and in what: blocks of `numbers` numbers along the last axis in `width` bytes each."""

    raw: Raw
    kind: Any
    numbers: int
    width: int

    @property
    def blocks(self) -> tuple[int, ...]:
        """The shape of the tensor in bytes, with one axis more: [..., blocks, bytes of a block]."""
        return (*self.raw.shape[:-1], self.raw.shape[-1] // self.numbers, self.width)

    @property
    def end(self) -> int:
        return self.raw.offset + math.prod(self.blocks)


class GGUFSource(TensorSource):
    """A `TensorSource` over one GGUF file, with its names.

    Every tensor is float32 and has the shape that the model has it in, (out, in) for a matrix. Beside the part that is read, about 20 MB of
    memory are used, or three times the longest row. `metadata` has the fields as Python values: "llama.block_count": 30,
    "tokenizer.ggml.tokens": [...].
    """

    def __init__(self, path: Path):
        """Raises InputError if the file is damaged, has tensors of another type than `KINDS`, or if the package `gguf` is not installed."""
        self._package = _package(path)
        self._file = DiskFile(path)
        self.files = (path,)
        try:
            fields, tensors = parse_header(self._file)
            split = fields.get("split.count", 0)
            if type(split) is not int:
                raise damaged(path, "split.count is not a number")
            if split > 1:
                raise InputError(f"{path} is one of {split} files. Join them with `llama-gguf-split --merge` first.")
            known = {kind.value: kind for kind in self._package.GGMLQuantizationType}
            self._entries = {name: self._entry(name, raw, known.get(raw.kind)) for name, raw in tensors.items()}
            self._check_places()
        except BaseException:
            self.close()
            raise
        self.metadata: Mapping[str, Any] = fields
        self.tensors = {name: TensorInfo(entry.raw.shape, np.dtype(np.float32)) for name, entry in self._entries.items()}

    def _entry(self, name: str, raw: Raw, kind: Any) -> _Entry:
        if kind is None or kind.name not in KINDS:
            shown = f"{raw.kind}, which is unknown" if kind is None else f"{kind.name}, which mmjax cannot read"
            raise InputError(f"{self._file.path}: tensor {quoted(name)} is quantised as {shown}. It reads {', '.join(KINDS)}.")
        numbers, width = self._package.GGML_QUANT_SIZES[kind]
        if raw.shape[-1] % numbers:
            raise damaged(
                self._file.path, f"rows of tensor {quoted(name)} have {raw.shape[-1]} numbers, {kind.name} has {numbers} in a block"
            )
        return _Entry(raw, kind, numbers, width)

    def _check_places(self) -> None:
        end, last = 0, ""
        for name, entry in sorted(self._entries.items(), key=lambda item: item[1].raw.offset):
            if entry.raw.offset < end:
                raise damaged(self._file.path, f"tensor {quoted(name)} overlaps {quoted(last)}")
            end, last = entry.end, name
            if end > self._file.size:
                reason = f"tensor {quoted(last)} ends at byte {end}, but the file has {self._file.size}; it is truncated"
                raise damaged(self._file.path, reason)

    def kind_of(self, name: str) -> str:
        """How a tensor is stored, one of `KINDS`. Raises KeyError for an unknown name."""
        return str(self._entries[name].kind.name)

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        entry = self._entries[name]
        ranges = spell_out(index, entry.raw.shape)
        result = np.empty([stop - start for start, stop in ranges], np.float32)
        self._fill(result, entry, ranges)
        return result

    def _fill(self, out: np.ndarray, entry: _Entry, ranges: Ranges) -> None:
        """Reads and dequantises the part of a tensor, in halves until they are small enough."""
        if not out.size:
            return
        axis = next((axis for axis, length in enumerate(out.shape[:-1]) if length > 1), None)
        if out.size > _CHUNK and axis is not None:
            half = out.shape[axis] // 2
            start, stop = ranges[axis]
            parts = np.split(out, [half], axis)
            self._fill(parts[0], entry, (*ranges[:axis], (start, start + half), *ranges[axis + 1 :]))
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


def _package(path: Path) -> types.ModuleType:
    try:
        import gguf
    except ImportError:
        raise InputError(f"{path} is a GGUF file. Reading it needs the package gguf: pip install 'mmjax[gguf]'.") from None
    return gguf
