"""Files beside weights that are none, or that are long: nothing blocks, takes long or takes much memory."""

import json
import os
import struct
import threading
import tracemalloc

import pytest

from mmjax.data.images.processor import open_image_processor
from mmjax.data.text.tokenizer_files import read_tokenizer
from mmjax.errors import InputError
from mmjax.weights.load import open_pretrained
from mmjax.weights.open import open_weights
from mmjax.weights.orbax_folder import open_orbax
from tests.weights.effort import at_most
from tests.weights.files import gguf_bytes, gguf_text, safetensors_bytes
from tests.weights.models import saved

WAIT = 20  # seconds
MOST_CALLS = 5_000_000
MOST = 120 * 1024 * 1024


def pipe(path):
    os.mkfifo(path)


def endless(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


KINDS = {"a pipe": pipe, "a device": endless, "a folder": folder}
READERS = {
    "config.json": open_pretrained,
    "preprocessor_config.json": open_image_processor,
    "mmjax.json": open_orbax,
    "model.safetensors.index.json": lambda folder: open_weights(
        folder / "model.safetensors.index.json"
    ),
    "tokenizer_config.json": read_tokenizer,
    "chat_template.jinja": read_tokenizer,
    "chat_template.json": read_tokenizer,
}


def refused(read, path):
    """The InputError, in a thread, so that one that waits for ever does not end the tests."""
    found = []

    def run():
        try:
            read(path)
        except InputError as error:
            found.append(str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(WAIT)
    assert not thread.is_alive(), "it waits for ever"
    assert found, "it was read"
    return found[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_not_read(name, kind, tmp_path):
    saved("siglip" if "preprocessor" in name else "llama", tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    (tmp_path / "model" / name).unlink(missing_ok=True)
    KINDS[kind](tmp_path / "model" / name)
    said = refused(READERS[name], tmp_path / "model")
    # a folder with such a name may be one of weights
    assert name in said and (
        "is not a file" in said
        or ("index" in name and kind == "a folder" and "has no weights" in said)
    )


@pytest.mark.parametrize("name", READERS)
def test_what_is_longer_than_any_is_not_read(name, tmp_path):
    saved("siglip" if "preprocessor" in name else "llama", tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    with (tmp_path / "model" / name).open("wb") as file:
        file.truncate(1 << 40)
    said = refused(READERS[name], tmp_path / "model")
    assert name in said and "1099511627776 bytes" in said


def filled(begin, item, end, size):
    """JSON of many small parts."""
    return begin + item * ((size - len(begin) - len(end)) // len(item)) + end


MEGABYTE = 1024 * 1024
ENTRY = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
HOSTILE = {
    "a config of lists": ("config.json", filled(b'{"x":[', b"[],", b"1]}", MEGABYTE)),
    "a config of objects": ("config.json", filled(b'{"x":[', b"{},", b"1]}", MEGABYTE)),
    "a longer config": ("config.json", filled(b'{"x":[', b"[],", b"1]}", 16 * MEGABYTE)),
    "an index of lists": (
        "model.safetensors.index.json",
        filled(b'{"weight_map":{},"x":[', b"[],", b"1]}", 2 * MEGABYTE),
    ),
    "an index of objects": (
        "model.safetensors.index.json",
        filled(b'{"weight_map":{},"x":[', b"{},", b"1]}", 2 * MEGABYTE),
    ),
    "an index of files": (
        "model.safetensors.index.json",
        json.dumps({"weight_map": {f"{n}": f"{n}.safetensors" for n in range(70_000)}}).encode(),
    ),
    "a longer index": (
        "model.safetensors.index.json",
        filled(b'{"weight_map":{},"x":[', b"{},", b"1]}", 8 * MEGABYTE),
    ),
    "an empty index": ("model.safetensors.index.json", b'{"weight_map": {}}'),
    "a header of objects": (
        "model.safetensors",
        safetensors_bytes(filled(b'{"x":[', b"{},", b"1]}", MEGABYTE)),
    ),
    "a header of tensors": (
        "model.safetensors",
        safetensors_bytes({f"{n:05d}": ENTRY for n in range(13_800)}),
    ),
    "a longer header": (
        "model.safetensors",
        safetensors_bytes({f"{n:05d}": ENTRY for n in range(27_000)}),
    ),
    "texts of GGUF": ("model.gguf", None),
    "more texts of GGUF": ("model.gguf", 1_270_000),
}


def texts(count):
    return gguf_bytes([gguf_text("x") + struct.pack("<IIQ", 9, 8, count) + bytes(8 * count)])


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_text_is_answered_soon(case, tmp_path):
    name, data = HOSTILE[case]
    model = saved("llama", tmp_path / "model")
    if name != "config.json":
        (model / "model.safetensors").unlink()
    (model / name).write_bytes(texts(data or 655_000) if name == "model.gguf" else data)
    with at_most(MOST_CALLS), pytest.raises(InputError) as caught:
        open_pretrained(model)
    assert len(str(caught.value)) < 5000 and str(model) in str(caught.value)
    if name in ("model.gguf", "model.safetensors"):
        return  # bounded by what is counted; looking at every allocation takes seconds
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            open_pretrained(model)
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()
