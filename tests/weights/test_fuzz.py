"""Whatever bytes a file has: it is read, or it is an InputError. Nothing else, and what is read is what the reference reads."""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import gguf
import hypothesis
import pytest
import safetensors
from hypothesis import strategies as st

from mmjax.errors import InputError
from mmjax.weights.open import open_weights
from mmjax.weights.safetensors import DTYPES
from tests.weights.files import entry, gguf_bytes, gguf_tensor, safetensors_bytes, same
from tests.weights.test_gguf import ONE, array, field

NUMBERS = st.sampled_from(
    [0, 1, 2, 4, 8, 16, 31, 32, 64, 255, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
)
WRONG = {
    "dtype": st.sampled_from([*DTYPES, "F4", "F6_E2M3"]) | JSON,
    "shape": st.lists(st.sampled_from([0, 1, 2, 4, 8, 2**62, -1]), max_size=3) | JSON,
    "data_offsets": st.lists(st.sampled_from([0, 4, 8, 16, 24, 32, 2**40]), min_size=2, max_size=2)
    | JSON,
}

SOUND_SAFETENSORS = safetensors_bytes(
    {
        "__metadata__": {"format": "pt"},
        "a": entry(),
        "b": entry("BF16", (4,), (16, 24)),
        "c": entry("U8", (0, 3), (24, 24)),
    },
    bytes(range(24)),
)
SOUND_GGUF = gguf_bytes(
    [
        ONE,
        field("general.alignment", 4, (32).to_bytes(4, "little")),
        field("texts", 9, array(8, 2, bytes(16))),
        field("numbers", 9, array(6, 2, bytes(8))),
    ],
    [gguf_tensor("w", [4, 2]), gguf_tensor("q", [32, 2], 8, 32)],
    bytes(range(100)),
)


@st.composite
def mutations(draw: st.DrawFn, sound: bytes) -> bytes:
    """A sound file with a few bytes changed, inserted or cut, or with a number of eight or four bytes put somewhere."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["byte", "number", "insert", "cut", "end"]))
        if kind == "byte" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif kind == "number":
            width = draw(st.sampled_from([4, 8]))
            data[at : at + width] = (draw(NUMBERS) % 256**width).to_bytes(width, "little")
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=8))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 8))]
        elif kind == "end":
            del data[at:]
    return bytes(data)


@st.composite
def layouts(draw: st.DrawFn) -> bytes:
    """A file of a few tensors, in which up to two things are wrong."""
    header: dict[str, Any] = {}
    end = 0
    for name in draw(st.lists(st.sampled_from(["a", "b", "ü", "\n"]), unique=True, max_size=3)):
        dtype, shape = (
            draw(st.sampled_from(list(DTYPES))),
            draw(st.lists(st.integers(0, 3), max_size=3)),
        )
        begin, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = entry(dtype, shape, (begin, end))
    for _ in range(draw(st.integers(0, 2))):
        name, key = (
            draw(st.sampled_from([*header, "__metadata__"])),
            draw(st.sampled_from(list(WRONG))),
        )
        if draw(st.booleans()) and isinstance(header.get(name), dict):
            header[name] = header[name] | {key: draw(WRONG[key])}
        else:
            header[name] = draw(
                JSON | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3)
            )
    return safetensors_bytes(header, bytes(range(256))[: draw(st.just(end) | st.integers(0, 64))])


def same_as_package(path: pathlib.Path, source: Any) -> None:
    with safetensors.safe_open(path, "numpy") as opened:
        assert set(opened.keys()) == set(source.tensors)
        assert dict(opened.metadata() or {}) == source.metadata
        for name, info in source.tensors.items():
            part = opened.get_slice(name)
            assert tuple(part.get_shape()) == info.shape and DTYPES[part.get_dtype()] == info.dtype
            if not info.dtype.name.startswith("float8"):
                assert same(source.read(name), opened.get_tensor(name))


def same_as_reader(path: pathlib.Path, source: Any) -> None:
    try:
        listed = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    except Exception:
        return  # It refuses more, such as a version of which it knows nothing, and not by one kind of error.
    assert set(listed) == set(source.tensors)
    for name, tensor in listed.items():
        assert (
            gguf.dequantize(tensor.data, tensor.tensor_type).tobytes()
            == source.read(name).tobytes()
        )


def check(path: pathlib.Path, data: bytes, compare: Callable[[pathlib.Path, Any], None]) -> None:
    path.write_bytes(data)
    try:
        source = open_weights(path)
    except InputError as error:
        assert str(error).isprintable() and len(str(error)) < 1000
        return
    with source:
        assert sum(math.prod(info.shape) for info in source.tensors.values()) <= 8 * len(data)
        for name in source.tensors:
            assert source.read(name).shape == source.tensors[name].shape
        compare(path, source)


TEXTS = mutations(SOUND_SAFETENSORS[8:-24]).map(lambda text: safetensors_bytes(text, bytes(24)))

FILES = {
    "safetensors bytes": (mutations(SOUND_SAFETENSORS), "x.safetensors", same_as_package),
    "safetensors text": (TEXTS, "x.safetensors", same_as_package),
    "safetensors header": (layouts(), "x.safetensors", same_as_package),
    "gguf bytes": (mutations(SOUND_GGUF), "x.gguf", same_as_reader),
}


def fuzz(tmp_path: pathlib.Path, kind: str, examples: int) -> None:
    strategy, name, compare = FILES[kind]

    @hypothesis.given(strategy)
    @hypothesis.settings(deadline=None, max_examples=examples, database=None)
    def run(data: bytes) -> None:
        check(tmp_path / name, data, compare)

    run()


@pytest.mark.parametrize("kind", FILES)
def test_any_bytes(tmp_path: pathlib.Path, kind: str):
    fuzz(tmp_path, kind, 100)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_any_bytes_at_length(tmp_path: pathlib.Path, kind: str):
    fuzz(tmp_path, kind, 3_000)


@hypothesis.given(
    JSON
    | st.dictionaries(
        st.just("weight_map"),
        JSON | st.dictionaries(st.text(max_size=3), JSON | st.text()),
        max_size=1,
    )
)
@hypothesis.settings(deadline=None, max_examples=100)
def test_any_index(tmp_path_factory: pytest.TempPathFactory, content: Any):
    path = tmp_path_factory.getbasetemp() / "model.safetensors.index.json"
    path.write_text(json.dumps(content))
    try:
        with open_weights(path) as source:
            assert not source.tensors
    except InputError as error:
        assert str(error).isprintable()


def test_the_sound_files_are_read(tmp_path: pathlib.Path):
    for data, name, count in ((SOUND_SAFETENSORS, "x.safetensors", 3), (SOUND_GGUF, "x.gguf", 2)):
        (tmp_path / name).write_bytes(data)
        with open_weights(tmp_path / name) as source:
            assert len(source.tensors) == count
