"""The one folder of a whole model has what stands beside its parts, and a tokenizer that knows what stands for images."""

import json

import pytest
import tokenizers

from mmjax.runs.whole_folder import complete_whole


@pytest.fixture
def folder(tmp_path):
    """A model of 4 tokens in three folders and in one, with a tokenizer of 3."""
    for name in ("vision", "decoder", "llava"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"image_token_index": 3}))
        (tmp_path / name / "model.safetensors").write_text(name)
    (tmp_path / "llava" / "processor_config.json").write_text('{"patch_size": 4}')
    (tmp_path / "vision" / "preprocessor_config.json").write_text('{"size": 8}')
    (tmp_path / "decoder" / "generation_config.json").write_text("{}")
    words = tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.save(str(tmp_path / "decoder" / "tokenizer.json"))
    return tmp_path


def of(folder, name):
    return json.loads((folder / "llava" / name).read_text())


def test_it_has_the_files_of_its_parts(folder):
    complete_whole(folder)
    assert of(folder, "preprocessor_config.json") == {"size": 8}
    assert of(folder, "generation_config.json") == {}
    assert (folder / "llava" / "model.safetensors").read_text() == "llava"


def test_its_tokenizer_gets_a_name_for_images(folder):
    complete_whole(folder)
    found = tokenizers.Tokenizer.from_file(str(folder / "llava" / "tokenizer.json"))
    assert found.token_to_id("<image>") == 3
    assert of(folder, "processor_config.json") == {"patch_size": 4, "image_token": "<image>"}
    assert "<image>" not in (folder / "decoder" / "tokenizer.json").read_text()


def test_a_name_that_is_there_is_told_to_the_processor(folder):
    (folder / "llava" / "config.json").write_text(json.dumps({"image_token_index": 1}))
    complete_whole(folder)
    assert of(folder, "processor_config.json")["image_token"] == "b"
    before = (folder / "decoder" / "tokenizer.json").read_bytes()
    assert (folder / "llava" / "tokenizer.json").read_bytes() == before


def test_the_settings_of_the_original_win(folder):
    (folder / "processor_config.json").write_text('{"image_token": "<mine>"}')
    complete_whole(folder)
    assert of(folder, "processor_config.json") == {"image_token": "<mine>"}


@pytest.mark.parametrize("text", ['{"format": "mmjax-words"}', "no json"])
def test_a_tokenizer_that_nobody_publishes_is_copied_as_it_is(folder, text):
    (folder / "decoder" / "tokenizer.json").write_text(text)
    complete_whole(folder)
    assert (folder / "llava" / "tokenizer.json").read_text() == text
    assert of(folder, "processor_config.json") == {"patch_size": 4}


def test_without_such_a_folder_there_is_nothing_to_do(tmp_path):
    complete_whole(tmp_path)
    assert not list(tmp_path.iterdir())
