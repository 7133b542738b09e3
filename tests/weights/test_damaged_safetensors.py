"""Damaged and hostile safetensors files: one message that names the file, at once, for each."""

import json
import pathlib
import re

import pytest
import safetensors.numpy

from mmjax.errors import InputError
from mmjax.weights.open import open_weights
from mmjax.weights.safetensors_writing import write_safetensors
from tests.weights.effort import at_most
from tests.weights.files import arrays, entry, listed, safetensors_bytes, write_index

MOST_CALLS = 5_000
SECOND = {"b": entry(offsets=(16, 32))}
TWICE = b'{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'

# What the `safetensors` package refuses, and mmjax with its reason.
DAMAGED = {
    "shorter than a length": b"\x00\x01",
    "truncated data": safetensors_bytes({"a": entry()} | SECOND, bytes(31)),
    "truncated header": safetensors_bytes({"a": entry()}, bytes(16))[:30],
    "a header of terabytes": safetensors_bytes({"a": entry()}, bytes(16), length=1 << 42),
    "the longest length": safetensors_bytes({"a": entry()}, bytes(16), length=(1 << 64) - 1),
    "no JSON": safetensors_bytes(b"{nonsense"),
    "no UTF-8": safetensors_bytes(b'{"\xff":0}'),
    "an array": safetensors_bytes(b"[]"),
    "deep nesting": safetensors_bytes(b'{"a":' + b"[" * 200_000),
    "a key twice": safetensors_bytes(b'{"a":{"dtype":"F32","dtype":"F16"}}'),
    "no object": safetensors_bytes({"a": 3}),
    "no offsets": safetensors_bytes({"a": {"dtype": "F32", "shape": []}}),
    "unknown dtype": safetensors_bytes({"a": entry("F31")}, bytes(16)),
    "dtype of another type": safetensors_bytes({"a": entry(["F32"])}, bytes(16)),
    "text for a shape": safetensors_bytes({"a": entry(shape="22")}, bytes(16)),
    "a negative size": safetensors_bytes({"a": entry(shape=(-2, -2))}, bytes(16)),
    "a fraction": safetensors_bytes({"a": entry(shape=(2.0, 2))}, bytes(16)),
    "true for a size": safetensors_bytes({"a": entry(shape=(True, 4))}, bytes(16)),
    "an endless tensor": safetensors_bytes({"a": entry(shape=(2**62, 2**62))}, bytes(16)),
    "terabytes": safetensors_bytes({"a": entry(shape=(2**40,), offsets=(0, 2**42))}, bytes(16)),
    "offsets backwards": safetensors_bytes({"a": entry(offsets=(16, 0))}, bytes(16)),
    "three offsets": safetensors_bytes({"a": entry(offsets=(0, 8, 16))}, bytes(16)),
    "negative offset": safetensors_bytes({"a": entry(offsets=(-16, 0))}, bytes(16)),
    "another size": safetensors_bytes({"a": entry(shape=(2, 3))}, bytes(16)),
    "overlap": safetensors_bytes({"a": entry(), "b": entry(offsets=(8, 24))}, bytes(24)),
    "the same place": safetensors_bytes({"a": entry(), "b": entry()}, bytes(16)),
    "a gap": safetensors_bytes({"a": entry(), "b": entry(offsets=(20, 36))}, bytes(36)),
    "a gap before": safetensors_bytes({"a": entry(offsets=(4, 20))}, bytes(20)),
    "bytes behind": safetensors_bytes({"a": entry()}, bytes(17)),
    "metadata of numbers": safetensors_bytes({"__metadata__": {"a": 1}}),
    "metadata as text": safetensors_bytes({"__metadata__": "a"}),
    "names of other terminals": safetensors_bytes({"\x1b[31m" + "a" * 999: entry(offsets=(1, 17))}),
}
# What the package reads, and mmjax does not.
UNUSABLE = {
    "a long header": (safetensors_bytes(b"{" + b" " * 9_000_000 + b"}"), "claims 9000002 bytes"),
    "a name twice": (safetensors_bytes(TWICE, bytes(16)), "'a' stands in it twice"),
    "packed dtype": (
        safetensors_bytes({"a": entry("F4", (2, 16))}, bytes(16)),
        "tensor 'a' has the dtype F4.*BF16",
    ),
    "many axes": (
        safetensors_bytes({"a": entry(shape=[1] * 33, offsets=(0, 4))}, bytes(4)),
        "tensor 'a' has the shape of no array",
    ),
    "endless, but empty": (
        safetensors_bytes({"a": entry(shape=(0, 2**62, 2**62), offsets=(0, 0))}),
        "tensor 'a' has the shape of no array",
    ),
}


def refused(path: pathlib.Path) -> str:
    """The message, which takes little work and stands on one line."""
    with at_most(MOST_CALLS), pytest.raises(InputError) as caught:
        open_weights(path)
    text = str(caught.value)
    assert text.isprintable() and len(text) < 600
    return text


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_refused(tmp_path: pathlib.Path, case: str):
    path = tmp_path / "model.safetensors"
    path.write_bytes(DAMAGED[case])
    assert refused(path).startswith(f"{path} is damaged, truncated or of another format; ")


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_be_used_is_named(tmp_path: pathlib.Path, case: str):
    data, message = UNUSABLE[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with safetensors.safe_open(path, "numpy"):
        pass
    text = refused(path)
    assert str(path) in text and re.search(message, text)


def test_the_sound_file_that_the_others_derive_from_is_read(tmp_path: pathlib.Path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes({"a": entry()} | SECOND, bytes(32)))
    with open_weights(path) as source:
        assert set(source.tensors) == {"a", "b"} and source.read("b").sum() == 0


@pytest.fixture
def sharded(tmp_path: pathlib.Path) -> pathlib.Path:
    write_safetensors(tmp_path / "model", listed(arrays()), shard_bytes=100)
    return tmp_path / "model"


def shared(places: dict[str, str]) -> str:
    """A tensor that is not alone in its file."""
    files = list(places.values())
    return next(name for name, file in places.items() if files.count(file) > 1)


@pytest.mark.parametrize(
    "file",
    [
        "../outside",
        "/etc/outside",
        "a/../../outside",
        "C:\\outside",
        "C:outside",
        "..\\outside",
        "out\0side",
    ],
)
def test_an_index_does_not_lead_out_of_its_folder(sharded: pathlib.Path, file: str):
    safetensors.numpy.save_file(arrays(), sharded.parent / "outside.safetensors")
    write_index(sharded, {"scale": f"{file}.safetensors"})
    text = refused(sharded)
    assert "'scale'" in text and "not a plain path" in text and str(sharded) in text


@pytest.mark.parametrize(
    "places, message",
    [
        (
            {"scale": "model-9.safetensors"},
            "'model-9.safetensors' for tensor 'scale', which does not exist",
        ),
        ({"scale": "x" * 5000 + ".safetensors"}, "does not exist"),
        ({"scale": "pytorch_model.bin"}, "no safetensors file"),
        ({"scale": ""}, "no safetensors file"),
        ({"scale": 3}, "weight_map"),
        (["scale"], "weight_map"),
    ],
)
def test_an_index_names_files_that_are_there(sharded: pathlib.Path, places, message: str):
    write_index(sharded, places)
    assert re.search(message, refused(sharded))


def test_an_index_and_its_files_agree(sharded: pathlib.Path):
    index = sharded / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    write_index(sharded, places | {"absent": places["scale"]})
    assert "'absent'" in refused(sharded)
    name, other = (
        shared(places),
        next(file for file in places.values() if file != places[shared(places)]),
    )
    write_index(sharded, places | {name: other})
    assert f"tensor '{name}' is in '{other}', but it is in '{places[name]}'" in refused(sharded)
    index.write_text('{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}')
    assert "'a' stands in it twice" in refused(sharded)


def test_an_endless_index(sharded: pathlib.Path):
    with (sharded / "model.safetensors.index.json").open("r+b") as sparse:
        sparse.truncate(1 << 40)
    assert "is no index" in refused(sharded)


def test_a_tensor_that_the_index_forgot_is_there(sharded: pathlib.Path):
    places = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    forgotten = shared(places)
    write_index(sharded, {name: place for name, place in places.items() if name != forgotten})
    with open_weights(sharded) as source:
        assert set(source.tensors) == set(places)


def test_a_tensor_in_two_files(sharded: pathlib.Path):
    places = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    again = {name: arrays()[name] for name in ("scale", "odd bytes")}
    safetensors.numpy.save_file(again, sharded / "more.safetensors")
    write_index(sharded, places | {"odd bytes": "more.safetensors"})
    text = refused(sharded)
    assert "again in" in text and "more.safetensors" in text


def test_links_are_followed(sharded: pathlib.Path):
    """As in the cache of huggingface_hub."""
    for path in sorted(sharded.glob("*.safetensors")):
        blob = sharded.parent / f"blob-{path.name}"
        path.rename(blob)
        path.symlink_to(blob)
    with open_weights(sharded) as source:
        assert set(source.tensors) == set(arrays())


def test_a_damaged_part_is_named(sharded: pathlib.Path):
    path = sorted(sharded.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    assert str(path) in refused(sharded)
