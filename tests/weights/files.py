"""Weight files for the tests, sound and otherwise, made byte by byte."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mmjax.weights.tensors import TensorInfo

DTYPES = (
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
    np.int64,
    np.uint8,
    np.bool_,
)


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors of every kind that checkpoints have, and of awkward shapes."""
    random = np.random.default_rng(seed)
    found = {
        f"layers.{i}.{np.dtype(dtype).name}": random.integers(0, 2, (3, 5)).astype(dtype)
        for i, dtype in enumerate(DTYPES)
    }
    found["scale"] = np.asarray(2.5, np.float32)
    found["empty"] = np.zeros((0, 4), np.float16)
    found["odd bytes"] = np.arange(3, dtype=np.uint8)
    found["name ü\n"] = random.standard_normal((2, 3, 4)).astype(np.float32)
    return found


def listed(tensors: Mapping[str, np.ndarray]) -> list[tuple[str, TensorInfo, np.ndarray]]:
    """Tensors as `write_safetensors` wants them."""
    return [(name, TensorInfo(array.shape, array.dtype), array) for name, array in tensors.items()]


def same(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal in shape, dtype and every bit."""
    return (
        left.shape == right.shape
        and left.dtype == right.dtype
        and left.tobytes() == right.tobytes()
    )


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def safetensors_bytes(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with any header: an object for JSON, or its bytes; `length` is what it claims its length to be."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def write_index(folder: Path, places: Any) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return path


def gguf_text(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def gguf_tensor(name: str, shape: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    """The description of a tensor; `shape` as GGUF has it, fastest axis first."""
    return gguf_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf_bytes(
    fields: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A file with any fields and tensors; `counts` is how many tensors and fields it claims."""
    head = (
        magic
        + struct.pack("<IQQ", version, *(counts or (len(tensors), len(fields))))
        + b"".join(fields)
        + b"".join(tensors)
    )
    return head + bytes(-len(head) % 32) + data
