"""Samples of a file."""

import json

import numpy as np
import pytest

from mmjax.data.text.tokenizer import WordTokenizer, open_tokenizer
from mmjax.errors import InputError
from mmjax.trajectory.samples import read_samples, read_texts
from tests.chat import tiny_models

TOKENIZER = WordTokenizer.build(["one two three four five", "two one", "five", "four three"])
SIZES = {"count": 10, "longest": 4, "vocabulary": 1000}


@pytest.fixture
def file(tmp_path):
    def write(content, name="text.txt"):
        path = tmp_path / name
        path.write_bytes(
            content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        )
        return path

    return write


def test_blank_lines_separate(file):
    path = file("\ufeffone\ntwo\n\n \t\nthree\r\n\r\n\r\n  four\n")
    assert list(read_texts(path)) == ["one\ntwo", "three", "  four"]


def test_one_object_a_line(file):
    path = file('{"text": "one\\n\\ntwo", "more": 1}\n\n{"text": ""}\n', "text.jsonl")
    assert list(read_texts(path)) == ["one\n\ntwo", ""]


def test_cut_counted_and_skipped(file):
    path = file("one two\n\none two three four five\n\nfive\n\none two three\n\nfour three two one")
    found = read_samples(path, TOKENIZER, **SIZES | {"count": 2})
    assert [TOKENIZER.decode(tokens) for tokens in found.tokens] == [
        "one two three four",
        "one two three",
    ]
    assert (found.skipped, found.total) == (2, 7)
    again = read_samples(path, TOKENIZER, **SIZES)
    assert len(again.tokens) == 3
    assert again.digest != found.digest
    assert read_samples(path, TOKENIZER, **SIZES).digest == again.digest


def test_what_the_tokenizer_puts_before_a_text_is_the_first_token(file, tmp_path):
    """And what it does not, is not: a bos alone says nothing."""
    tiny_models.save_tokenizer(tmp_path)
    plain = open_tokenizer(tmp_path)
    assert read_samples(file("abc"), plain, **SIZES).tokens[0].tolist() == plain.encode("abc")
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    part = {"Sequence": {"id": "A", "type_id": 0}}
    settings["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, part],
        "pair": [part, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [plain.bos], "tokens": ["<s>"]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    begun = open_tokenizer(tmp_path)
    assert read_samples(file("abc"), begun, **SIZES).tokens[0].tolist() == [
        begun.bos,
        *begun.encode("abc"),
    ]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "text.txt", "There is no text in"),
        (" \n\n\n", "text.txt", "There is no text in"),
        ("\n", "text.jsonl", "There is no text in"),
        ("one\n\ntwo three", "text.txt", "No sample of .* has 3 tokens.* separated by blank lines"),
        ('{"text": "one"}', "text.jsonl", "No sample of .* has 3 tokens.* Each line is one"),
        (b"one two \xff three", "text.txt", "is not UTF-8"),
        ("one two three", "text.jsonl", 'line 1, is not an object with a "text"'),
        ('{"text": "one two three"}\n["text"]', "text.jsonl", "line 2, is not an object"),
        ('{"text": 3}', "text.jsonl", "line 1, is not an object"),
    ],
)
def test_what_is_wrong_is_said(file, content, name, message):
    with pytest.raises(InputError, match=message):
        read_samples(file(content, name), TOKENIZER, **SIZES)


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=r"is not a file|cannot be opened"):
            read_samples(path, TOKENIZER, **SIZES)


def test_a_tokenizer_of_another_model(file):
    with pytest.raises(InputError, match=r"gives token .* and the model knows 200"):
        read_samples(file("one two three"), TOKENIZER, **SIZES | {"vocabulary": 200})


def test_tokens_are_what_the_device_takes(file):
    assert read_samples(file("one two three"), TOKENIZER, **SIZES).tokens[0].dtype == np.int32
