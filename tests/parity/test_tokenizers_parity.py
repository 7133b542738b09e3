"""Published forms of tokenizers against the libraries that own them: the same ids for texts of every kind."""

import json

import pytest

from mmjax.data.text.tokenizer import open_tokenizer


@pytest.fixture
def published(reference):
    """(a recorded thing by name, what JSON it holds)"""
    arrays = reference("tokenizers")
    return lambda name: arrays[name].tobytes(), lambda name: json.loads(arrays[name].tobytes())


def opened(data, folder, name, settings=None):
    (folder / name).write_bytes(data)
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return open_tokenizer(folder)


def with_prefix(text):
    """As a tokenizer with prefix_space "first" has a whole text."""
    return " " + text if text and not text.startswith((" ", "▁")) else text


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "qwen2"])
def test_byte_level_gguf(published, tmp_path, pre):
    data, read = published
    tokenizer = opened(data(f"gguf:{pre}:file"), tmp_path, "model.gguf")
    ids = [tokenizer.encode(text) for text in read("texts")]
    assert ids == read(f"gguf:{pre}:ids")
    assert [tokenizer.decode(one) for one in ids] == read("texts")
    assert (tokenizer.bos, tokenizer.eos) == (1, 2) and len(tokenizer.encode("<think>")) == 1


def test_transformers_alone_cuts_digits_of_smollm_otherwise(published):
    """It falls back on GPT-2's rule there; the ids differ only where several spaces stand before a digit, or none."""
    _, read = published
    apart, ids = read("gguf:smollm:apart"), read("gguf:smollm:ids")
    differing = [
        text for text, one, other in zip(read("texts"), apart, ids, strict=True) if one != other
    ]
    assert all(any(character.isdigit() for character in text) for text in differing)
    assert read("gguf:qwen2:apart") == read("gguf:qwen2:ids") and read(
        "gguf:llama-bpe:apart"
    ) == read("gguf:llama-bpe:ids")


def test_sentencepiece_file(published, tmp_path):
    """Texts as they stand, by sentencepiece itself; whole texts, by transformers."""
    data, read = published
    tokenizer = opened(
        data("sentencepiece:file"),
        tmp_path,
        "tokenizer.model",
        {"tokenizer_class": "LlamaTokenizer", "legacy": False},
    )
    texts = read("texts")
    assert [tokenizer.encode(text) for text in texts] == read("sentencepiece:ids")
    assert tokenizer.prefix_space == "first"
    assert [tokenizer.encode(with_prefix(text)) for text in texts] == read("sentencepiece:whole")


def test_sentencepiece_gguf(published, tmp_path):
    data, read = published
    tokenizer = opened(data("gguf:llama:file"), tmp_path, "model.gguf")
    assert tokenizer.prefix_space == "first"
    assert [tokenizer.encode(with_prefix(text)) for text in read("texts")] == read(
        "gguf:llama:whole"
    )
    assert [tokenizer.encode(text) for text in read("texts")] == read("sentencepiece:ids")


def test_tiktoken_file(published, tmp_path):
    data, read = published
    tokenizer = opened(
        data("tiktoken:file"), tmp_path, "tokenizer.model", read("tiktoken:settings")
    )
    ids = [tokenizer.encode(text) for text in read("tiktoken:texts")]
    assert ids == read("tiktoken:ids")
    assert [tokenizer.decode(one) for one in ids] == read("tiktoken:texts")
    assert tokenizer.decode(
        [tokenizer.special("<|eot_id|>")]
    ) == "" and tokenizer.bos == tokenizer.special("<|begin_of_text|>")
