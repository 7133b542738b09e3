"""GGUF files that the `gguf` package wrote, read as the package reads them; and damaged ones."""

import builtins
import pathlib
import struct
from typing import Any
from unittest import mock

import gguf
import hypothesis
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import strategies as st

from mmjax.errors import InputError
from mmjax.weights import gguf as module
from mmjax.weights.gguf import KINDS, GGUFSource
from mmjax.weights.open import open_weights
from mmjax.weights.tensors import TensorInfo
from tests.weights.effort import at_most
from tests.weights.files import gguf_bytes, gguf_tensor, gguf_text

MOST_CALLS = 5_000
SHAPE = (6, 512)


def stored(kind: Kind, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor as GGUF stores it. The package cannot quantise to K-types: there, any bytes with sane scales are a tensor."""
    random = np.random.default_rng(int(kind))
    values = random.standard_normal(shape).astype(np.float32)
    if kind not in (Kind.Q4_K, Kind.Q6_K):
        return gguf.quantize(values, kind)
    numbers, width = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (*shape[:-1], shape[-1] // numbers, width), dtype=np.uint8)
    scales = [(0, 2), (2, 4)] if kind == Kind.Q4_K else [(width - 2, width)]
    for begin, end in scales:
        blocks[..., begin:end] = (
            random.uniform(-1, 1, (*blocks.shape[:-1], 1)).astype(np.float16).view(np.uint8)
        )
    return blocks.reshape(*shape[:-1], -1)


def write(
    path: pathlib.Path,
    tensors: dict[str, tuple[Kind, np.ndarray]],
    fields: dict[str, Any] | None = None,
) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (fields or {}).items():
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }
        add[type(value)](key, value)
    for name, (kind, data) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A file with a matrix of each kind, a stack of matrices and a vector."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    tensors = {name: (Kind[name], stored(Kind[name], SHAPE)) for name in KINDS}
    tensors["experts"] = (Kind.Q8_0, stored(Kind.Q8_0, (3, 4, 64)))
    tensors["norm.weight"] = (Kind.F32, np.arange(5, dtype=np.float32))
    fields = {
        "llama.block_count": 30,
        "llama.rope.freq_base": 0.5,
        "is": True,
        "general.name": "ein Modell ü",
    }
    write(
        path,
        tensors,
        fields
        | {
            "tokens": ["a", "", "ü", " b"],
            "scores": [0.5, -1.0],
            "types": [1, 2, 3],
            "flags": [True, False],
        },
    )
    return path


@pytest.mark.parametrize("kind", [*KINDS, "experts"])
def test_every_kind_is_read_as_the_package_reads_it(model: pathlib.Path, kind: str):
    listed = next(tensor for tensor in gguf.GGUFReader(model).tensors if tensor.name == kind)
    with open_weights(model) as source:
        found = source.read(kind)
        assert source.tensors[kind] == TensorInfo(found.shape, np.dtype(np.float32))
    assert (
        found.dtype == np.float32
        and found.flags.writeable
        and np.isfinite(found).all()
        and found.std() > 0.1
    )
    np.testing.assert_array_equal(found, gguf.dequantize(listed.data, listed.tensor_type))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_the_numbers_are_those_that_were_stored(model: pathlib.Path, kind: str):
    """Not by the package's own dequantisation: within the coarseness of each kind."""
    values = np.random.default_rng(int(Kind[kind])).standard_normal(SHAPE)
    with open_weights(model) as source:
        difference = np.abs(source.read(kind) - values).max()
    assert difference <= {"F32": 1e-6, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 2e-2}.get(kind, 0.3)


def test_shapes_are_out_in(model: pathlib.Path):
    with GGUFSource(model) as source:
        assert source.tensors["Q4_K"].shape == SHAPE
        assert source.tensors["experts"].shape == (3, 4, 64)
        np.testing.assert_array_equal(source.read("norm.weight"), np.arange(5))
        assert source.stored_as("experts") == "Q8_0" and source.files == (model,)


def test_fields_are_plain_values(model: pathlib.Path):
    with open_weights(model) as source:
        fields = source.metadata
    assert fields["general.architecture"] == "llama" and fields["general.name"] == "ein Modell ü"
    assert (
        fields["llama.block_count"] == 30
        and fields["llama.rope.freq_base"] == 0.5
        and fields["is"] is True
    )
    assert (
        fields["tokens"] == ["a", "", "ü", " b"]
        and fields["scores"] == [0.5, -1.0]
        and fields["types"] == [1, 2, 3]
    )
    assert fields["flags"] == [True, False]
    listed = {
        key: field.contents()
        for key, field in gguf.GGUFReader(model).fields.items()
        if not key.startswith("GGUF.")
    }
    assert fields == listed


@hypothesis.given(
    st.sampled_from([*KINDS, "experts"]), st.data(), st.sampled_from([1, 100, 1 << 20])
)
@hypothesis.settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_any_slice_in_any_number_of_parts(
    model: pathlib.Path, kind: str, data: st.DataObject, chunk: int
):
    with open_weights(model) as source, mock.patch.object(module, "_CHUNK", chunk):
        shape = source.tensors[kind].shape
        starts = [data.draw(st.integers(0, size)) for size in shape]
        index = tuple(
            slice(start, data.draw(st.integers(start, size)))
            for start, size in zip(starts, shape, strict=True)
        )
        whole = source.read(kind)
        np.testing.assert_array_equal(source.read(kind, index), whole[index])
        np.testing.assert_array_equal(source.read(kind, index[:1]), whole[index[:1]])


def test_other_kinds_are_refused_by_name(tmp_path: pathlib.Path):
    for kind, shown in ((int(Kind.IQ2_XS), "IQ2_XS"), (999, "999")):
        (tmp_path / "model.gguf").write_bytes(
            gguf_bytes(tensors=[gguf_tensor("w", [256], kind)], data=bytes(4096))
        )
        with pytest.raises(InputError, match=f"'w'.*{shown}.*Q6_K"):
            open_weights(tmp_path)


def test_without_the_package_the_extra_is_named(model: pathlib.Path):
    real = builtins.__import__

    def absent(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    with (
        mock.patch.object(builtins, "__import__", absent),
        pytest.raises(InputError, match=r"mmjax\[gguf\]"),
    ):
        open_weights(model)


def field(key: str, kind: int, value: bytes) -> bytes:
    return gguf_text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


ONE = field("k", 4, struct.pack("<I", 1))
W = gguf_tensor("w", [4, 2])
SOUND = gguf_bytes([ONE], [W], bytes(32))

DAMAGED = {
    "nothing behind the magic": (b"GGUF", "ends at byte 4, within its header"),
    "a header cut": (SOUND[:40], "ends at byte 40"),
    "data cut": (SOUND[:-1], "tensor 'w' ends at byte .*truncated"),
    "version 1": (gguf_bytes(version=1), "version 1"),
    "big-endian": (gguf_bytes(version=3 << 24), "big-endian"),
    "endless tensors": (gguf_bytes(counts=(1 << 60, 0)), "claims 1152921504606846976 tensors"),
    "endless fields": (gguf_bytes(counts=(0, 1 << 60)), "claims 1152921504606846976 fields"),
    "many tensors": (gguf_bytes(counts=(100_000, 0)), "claims 100000 tensors"),
    "more tensors than there are": (gguf_bytes([], [W], counts=(2, 0)), "damaged"),
    "endless bytes": (
        gguf_bytes([field("k", 9, array(0, 1 << 50))]),
        "claims 1125899906842624 values of 'k'",
    ),
    "endless texts": (gguf_bytes([field("k", 9, array(8, 1 << 50))]), "texts of 'k'"),
    "an endless text": (
        gguf_bytes([field("k", 8, struct.pack("<Q", 1 << 62))]),
        "within its header",
    ),
    "an endless name": (gguf_bytes([struct.pack("<Q", 1 << 62)]), "within its header"),
    "nested arrays": (
        gguf_bytes([field("k", 9, array(9, 1, array(0, 0)))]),
        "'k' is an array of the type 9",
    ),
    "unknown type": (gguf_bytes([field("k", 77, b"")]), "'k' has the unknown type 77"),
    "no UTF-8": (gguf_bytes([field("k", 8, gguf_text(b"\xff"))]), "'k' is not UTF-8"),
    "a field twice": (gguf_bytes([ONE, ONE]), "'k' stands in it twice"),
    "a tensor twice": (gguf_bytes([], [W, W], bytes(32)), "tensor 'w' stands in it twice"),
    "alignment": (
        gguf_bytes([field("general.alignment", 4, struct.pack("<I", 24))]),
        "general.alignment is 24",
    ),
    "alignment as text": (
        gguf_bytes([field("general.alignment", 8, gguf_text("x"))]),
        "general.alignment is 'x'",
    ),
    "many axes": (
        gguf_bytes([], [gguf_tensor("w", [1] * 5)], bytes(32)),
        "tensor 'w' claims 5 axes",
    ),
    "no axes": (gguf_bytes([], [gguf_tensor("w", [])], bytes(32)), "tensor 'w' claims 0 axes"),
    "an endless tensor": (
        gguf_bytes([], [gguf_tensor("w", [2**63, 2**63])], bytes(32)),
        "tensor 'w' claims the shape",
    ),
    "an empty tensor": (
        gguf_bytes([], [gguf_tensor("w", [4, 0])], bytes(32)),
        "tensor 'w' claims the shape",
    ),
    "terabytes": (
        gguf_bytes([], [gguf_tensor("w", [2**20, 2**20])], bytes(32)),
        "tensor 'w' ends at byte.*truncated",
    ),
    "out of the file": (
        gguf_bytes([], [gguf_tensor("w", [4], offset=2**63)], bytes(32)),
        "tensor 'w' ends at byte.*truncated",
    ),
    "part of a block": (
        gguf_bytes([], [gguf_tensor("w", [33], int(Kind.Q8_0))], bytes(64)),
        "rows of tensor 'w' have 33 numbers",
    ),
    "overlap": (
        gguf_bytes([], [W, gguf_tensor("v", [4], offset=16)], bytes(64)),
        "tensor 'v' overlaps 'w'",
    ),
    "one of several files": (
        gguf_bytes([field("split.count", 2, struct.pack("<H", 3))]),
        "one of 3 files",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(tmp_path: pathlib.Path, case: str):
    data, message = DAMAGED[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with at_most(MOST_CALLS), pytest.raises(InputError, match=message) as caught:
        open_weights(path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


def test_the_sound_file_that_the_others_derive_from_is_read(tmp_path: pathlib.Path):
    (tmp_path / "model.gguf").write_bytes(SOUND)
    with open_weights(tmp_path) as source:
        assert source.metadata == {"k": 1} and source.tensors["w"].shape == (2, 4)
        assert not source.read("w").any()


def test_a_header_longer_than_any_is_not_read(tmp_path: pathlib.Path):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes([field("k", 8, struct.pack("<Q", 1 << 35))]))
    with path.open("r+b") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(InputError, match="its header is longer than"):
        open_weights(path)
