"""Heads that are tied, and what a file may hold of them."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmjax.errors import InputError
from mmjax.port import __main__ as port
from mmjax.weights import load_pretrained
from mmjax.weights import tensors as tensors_module
from mmjax.weights.load import open_pretrained
from tests.weights.models import saved

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def folder(tmp_path):
    """A llama whose config says that its head is tied; its file has a head of its own."""
    return configured(saved("llama", tmp_path / "llama"), tie_word_embeddings=True)


def configured(folder, **changes):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changes))
    return folder


def tensors(folder, change):
    found = load_file(folder / "model.safetensors")
    change(found)
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    return found


def test_a_head_that_differs_is_taken_from_the_file(folder, tmp_path, capsys):
    found = tensors(
        folder,
        lambda found: found.update(
            {HEAD: found[TABLE] + (np.arange(48) == 47)[:, None].astype(np.float32)}
        ),
    )
    module = load_pretrained(folder)
    assert not module.config.decoder.tie_word_embeddings
    np.testing.assert_array_equal(module.decoder.lm_head.kernel[...], found[HEAD].T)
    assert port.main([str(folder), str(tmp_path / "out"), "--to=huggingface"]) == 0
    assert (
        "Note: lm_head.weight differs from model.embed_tokens.weight: the head is taken"
        in capsys.readouterr().out
    )
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    )
    np.testing.assert_array_equal(
        load_file(tmp_path / "out" / "model.safetensors")[HEAD], found[HEAD]
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_a_head_that_is_a_copy_is_skipped(dtype, chunk, folder, monkeypatch):
    monkeypatch.setattr(tensors_module, "_COMPARED", chunk)
    tensors(folder, lambda found: found.update({HEAD: found[TABLE].astype(dtype)}))
    with open_pretrained(folder) as opened:
        assert (
            opened.config.decoder.tie_word_embeddings
            and opened.unused == [HEAD]
            and not opened.notes
        )


@pytest.mark.parametrize("place", [(0, 0), (47, 31), (20, 9)])
def test_one_number_makes_it_another_head(place, folder, monkeypatch):
    monkeypatch.setattr(tensors_module, "_COMPARED", 7)

    def change(found):
        found[HEAD] = found[TABLE].copy()
        found[HEAD][place] *= 2

    tensors(folder, change)
    with open_pretrained(folder) as opened:
        assert not opened.config.decoder.tie_word_embeddings and not opened.unused


def test_the_head_alone_is_the_table_of_embeddings(folder):
    found = tensors(folder, lambda found: found.pop(TABLE))
    module = load_pretrained(folder)
    assert module.config.decoder.tie_word_embeddings
    np.testing.assert_array_equal(module.decoder.embedding[...], found[HEAD])


def test_a_head_of_another_shape_is_misshapen(folder):
    tensors(folder, lambda found: found.update({HEAD: found[HEAD][:-1]}))
    with pytest.raises(
        InputError, match=r"misshapen: lm_head.weight is \[47, 32\] and should be \[48, 32\]"
    ):
        load_pretrained(folder)


@pytest.mark.parametrize("name", ["norm.weight", "layers.0.mlp.up_proj.weight"])
def test_two_spellings_of_one_tensor_are_refused(name, folder):
    tensors(folder, lambda found: found.update({name: found[f"model.{name}"] + 1}))
    with pytest.raises(
        InputError,
        match=f"'(model.)?{name}' and '(model.)?{name}' are two spellings of 'model.{name}'",
    ):
        load_pretrained(folder)
