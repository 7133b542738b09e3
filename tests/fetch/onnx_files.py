"""ONNX files, written byte by byte."""

from collections.abc import Iterable, Sequence

import numpy as np

FLOAT, INT64 = 1, 7


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name: str, array: np.ndarray, packed: bool = True) -> bytes:
    """A TensorProto with its numbers as raw data; its dimensions packed, as writers do today, or one by one, as older ones did."""
    dims = (
        field(1, b"".join(map(varint, array.shape)))
        if packed
        else b"".join(field(1, size) for size in array.shape)
    )
    kind = FLOAT if array.dtype == np.float32 else INT64
    return dims + field(2, kind) + field(8, name) + field(9, array.tobytes())


def node(name: str, operation: str, inputs: Iterable[str]) -> bytes:
    return (
        b"".join(field(1, text) for text in inputs)
        + field(2, f"{name}_output_0")
        + field(3, name)
        + field(4, operation)
    )


def model(nodes: Sequence[bytes], tensors: Sequence[bytes]) -> bytes:
    graph = (
        b"".join(field(1, one) for one in nodes)
        + field(2, "main_graph")
        + b"".join(field(5, one) for one in tensors)
    )
    return field(1, 7) + field(2, "tests") + field(7, graph) + field(8, field(2, 14))
