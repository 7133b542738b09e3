"""What stands beside weights comes along: the folder's own files, or the tokenizer of a GGUF file, or the reason why there is none."""

import io
import json
import pathlib

import pytest
from rich.console import Console

from mmjax.data.text.tokenizer import open_tokenizer
from mmjax.errors import InputError
from mmjax.port.port import port
from mmjax.port.sources import open_source
from mmjax.weights.load import open_pretrained
from tests.chat import tiny_models
from tests.data.test_tokenizer_files import fields, gguf

QUIET = Console(file=io.StringIO())
OWN = {
    "tokenizer_config.json": '{"eos_token": "</s>"}',
    "generation_config.json": '{"eos_token_id": 1}',
}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Weights, a tokenizer and settings, and a GGUF file with another tokenizer."""
    folder = tiny_models.save(tmp_path / "model", tiny_models.language_model())
    for name, text in OWN.items():
        (folder / name).write_text(text)
    (folder / "other.gguf").write_bytes(gguf(fields()))
    return folder


def companions(source: pathlib.Path, target: pathlib.Path) -> list[str]:
    target.mkdir()
    with open_source(source) as opened:
        return sorted(set(opened.copy_companions(target)))


def test_the_files_of_a_folder_win_over_a_gguf_file_in_it(
    folder: pathlib.Path, tmp_path: pathlib.Path
):
    out = tmp_path / "out"
    assert companions(folder, out) == [
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in companions(folder, tmp_path / "again"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()


def test_without_a_tokenizer_of_its_own_it_gets_that_of_the_gguf_file(
    folder: pathlib.Path, tmp_path: pathlib.Path
):
    (folder / "tokenizer.json").unlink()
    out = tmp_path / "out"
    assert companions(folder, out) == [
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert open_tokenizer(out).encode("ab") == [258]
    for name, text in OWN.items():
        assert (out / name).read_text() == text


def test_why_there_is_no_tokenizer(folder: pathlib.Path, tmp_path: pathlib.Path):
    (folder / "tokenizer.json").unlink()
    (folder / "other.gguf").write_bytes(gguf(fields(pre="tekken")))
    said = companions(folder, tmp_path / "out")
    assert [name for name in said if not name.startswith("no tokenizer")] == sorted(OWN)
    assert [
        name
        for name in said
        if name.startswith("no tokenizer (")
        and "cuts texts in the manner of 'tekken', which" in name
    ]
    (folder / "third.gguf").write_bytes(b"")
    assert any(
        "has 2 GGUF files; name the one" in name for name in companions(folder, tmp_path / "again")
    )


def test_settings_of_images_come_along_in_both_forms(tmp_path: pathlib.Path):
    """Where a folder for the encoder is made, there too."""
    whole = tiny_models.save(tmp_path / "whole", tiny_models.vlm())
    images = {"image_processor_type": "CLIPImageProcessor", "image_mean": [0.25, 0.25, 0.25]}
    (whole / "vision" / "preprocessor_config.json").unlink()
    for place in (whole, whole / "vision"):
        (place / "processor_config.json").write_text(json.dumps({"image_processor": images}))
    (whole / "decoder" / "additional_chat_templates").mkdir()
    (whole / "decoder" / "additional_chat_templates" / "rag.jinja").write_text("rag")
    port(str(whole), tmp_path / "orbax", QUIET)
    port(str(tmp_path / "orbax"), tmp_path / "back", QUIET)
    for target in (tmp_path / "orbax", tmp_path / "back"):
        for place in (target, target / "vision"):
            assert json.loads((place / "preprocessor_config.json").read_text()) == images
            assert (place / "processor_config.json").exists()
        assert open_tokenizer(target / "decoder").chat_templates == ("rag",)
        with open_pretrained(target) as opened:
            assert opened.config.vision.image_mean == (0.25,) * 3


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "LICENSE"])
def test_pointers_are_no_companions(folder: pathlib.Path, tmp_path: pathlib.Path, name: str):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(".git/annex/objects/0/0/MD5-s3--0/MD5-s3--0")
    with pytest.raises(InputError, match=f"{name} is a pointer of git-annex"):
        companions(folder, tmp_path / "out")
