"""Tokenizers: exact inversion, determinism, special tokens out of reach of texts, files."""

import json
import pickle
import subprocess
import sys

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mmjax.data.text.tokenizer import HuggingFaceTokenizer, WordTokenizer
from mmjax.errors import InputError

TEXTS = ["is there a red circle?", " yes", "a red circle", "a red shape"]
any_text = st.text(
    st.characters() | st.characters(categories=["Cs"]), max_size=40
)  # lone surrogates included


@given(any_text)
def test_words_invert_any_text(text):
    tokenizer = WordTokenizer.build(TEXTS)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(any_text, any_text)
def test_words_invert_known_pieces_too(known, text):
    tokenizer = WordTokenizer.build([known])
    assert tokenizer.decode(tokenizer.encode(known + text)) == known + text
    assert all(index >= 4 + 256 for index in tokenizer.encode(known))


@given(any_text, st.sampled_from(["pad", "bos", "eos", "image", "<bos>", "<|end|>"]))
def test_no_text_becomes_a_special_token(text, name):
    tokenizer = WordTokenizer.build([name], special_tokens=("<|end|>",))
    assert min(tokenizer.encode(text + name)) > tokenizer.special("<|end|>")


@given(st.lists(st.integers(0, 4 + 256 + 10)))
def test_words_decode_whatever_a_model_produces(ids):
    tokenizer = WordTokenizer.build(TEXTS)
    assert isinstance(tokenizer.decode([index % tokenizer.vocabulary for index in ids]), str)


def test_a_word_has_one_id_behind_a_space_and_order_is_by_frequency_then_text():
    tokenizer = WordTokenizer.build(TEXTS)
    assert tokenizer.pieces == (" red", " circle", "a", " a", " shape", " there", " yes", "?", "is")
    assert tokenizer.encode(" red circle") == [260, 261]


@given(st.permutations(TEXTS))
def test_the_order_of_texts_does_not_matter(texts):
    assert WordTokenizer.build(texts).digest == WordTokenizer.build(TEXTS).digest


def test_max_size_bounds_the_vocabulary_and_keeps_the_most_frequent():
    tokenizer = WordTokenizer.build(TEXTS, max_size=4 + 256 + 2)
    assert tokenizer.pieces == (" red", " circle") and tokenizer.vocabulary == 262
    assert tokenizer.decode(tokenizer.encode("is there")) == "is there"
    with pytest.raises(InputError, match=r"max_size .* must be at least its 260 .*, not 12"):
        WordTokenizer.build(TEXTS, max_size=12)


def test_special_tokens_are_skipped_in_decoded_text():
    tokenizer = WordTokenizer.build(TEXTS)
    assert (
        tokenizer.decode(
            [
                tokenizer.bos,
                *tokenizer.encode("a red"),
                tokenizer.image,
                tokenizer.eos,
                tokenizer.pad,
            ]
        )
        == "a red"
    )
    assert len({tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.image}) == 4


def test_save_and_load_give_the_same_tokenizer(tmp_path):
    tokenizer = WordTokenizer.build([*TEXTS, "\ud800 Grüße"], special_tokens=("<|end|>",))
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = WordTokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.digest == tokenizer.digest and loaded.special("<|end|>") == tokenizer.special(
        "<|end|>"
    )
    assert loaded.encode("a red Grüße") == tokenizer.encode("a red Grüße")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["pieces"].reverse(), "digest"),
        (lambda content: content.update(version=99), "version 99"),
        (lambda content: content.update(format="other"), "not a word tokenizer"),
        (lambda content: content.pop("digest"), "digest"),
    ],
)
def test_a_changed_file_is_refused(tmp_path, change, message):
    path = tmp_path / "tokenizer.json"
    WordTokenizer.build(TEXTS).save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        WordTokenizer.load(path)


def test_missing_and_truncated_files_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="no tokenizer file"):
        WordTokenizer.load(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"format": "mm')
    with pytest.raises(InputError, match="cannot be read"):
        WordTokenizer.load(tmp_path / "cut.json")


def test_an_unknown_special_token_is_an_input_error():
    with pytest.raises(InputError, match="eot_id"):
        WordTokenizer.build(TEXTS).special("<|eot_id|>")


CORPUS = ["is there a red circle? yes it is there.", "hello there, general <s> eot </s>"] * 4


def byte_level(tmp_path):
    """A tokenizer in the manner of GPT-2 and Llama 3: bytes, no dummy prefix."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>", "<|eot_id|>", "☃"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def sentence_piece(tmp_path):
    """A tokenizer in the manner of Llama 2: byte fallback, a space put before every text, and `<s>` in the model's own vocabulary."""
    vocabulary = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{value:02X}>" for value in range(256)),
        "▁",
        "a",
        "r",
        "▁a",
        "▁r",
    ]
    model = models.BPE(
        {token: index for index, token in enumerate(vocabulary)},
        [("▁", "a"), ("▁", "r")],
        unk_token="<unk>",
        byte_fallback=True,
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture(params=[byte_level, sentence_piece])
def folder(request, tmp_path):
    return request.param(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "a", " a", "  a\n r ", "Grüße 😀", "a</s>r<s>", "</s>", "<|eot_id|>", "<unk>"]
)
def test_published_tokenizers_invert_and_keep_names_of_special_tokens_text(folder, text):
    tokenizer = HuggingFaceTokenizer(folder)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.image} & set(ids)


def test_published_tokenizers_add_nothing_between_texts(folder):
    tokenizer = HuggingFaceTokenizer(folder)
    assert tokenizer.encode("r") + tokenizer.encode(" a") == tokenizer.encode("r a")


def test_a_special_token_of_one_character_stays_text_too(tmp_path):
    tokenizer = HuggingFaceTokenizer(byte_level(tmp_path))
    assert (
        tokenizer.special("☃") not in tokenizer.encode("a ☃ b")
        and tokenizer.decode(tokenizer.encode("a ☃ b")) == "a ☃ b"
    )


def words(folder):
    """A tokenizer of whole words."""
    model = models.WordLevel({"<unk>": 0, "</s>": 1, "<s>": 2, "a": 3}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_names_within_a_model_vocabulary_are_cut_apart(tmp_path):
    assert HuggingFaceTokenizer(words(tmp_path)).encode("a </s>") == [3, 0, 0]


def test_ids_by_customary_names_and_an_image_id_after_the_vocabulary(tmp_path):
    tokenizer = HuggingFaceTokenizer(byte_level(tmp_path))
    size = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab_size()
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (0, 1, 1)
    assert tokenizer.image == size and tokenizer.vocabulary == size + 1
    assert (
        tokenizer.decode([tokenizer.bos, *tokenizer.encode("red"), tokenizer.image, tokenizer.eos])
        == "red"
    )
    assert tokenizer.special("<|eot_id|>") == 2


def test_tokenizer_config_names_come_first(tmp_path):
    byte_level(tmp_path)
    config = {
        "bos_token": "<|eot_id|>",
        "eos_token": {"__type": "AddedToken", "content": "<s>"},
        "pad_token": "</s>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = HuggingFaceTokenizer(tmp_path / "tokenizer.json")
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (2, 0, 1)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<nowhere>"}')
    with pytest.raises(InputError, match="<nowhere>"):
        HuggingFaceTokenizer(tmp_path)


def test_an_ordinary_token_is_no_special_token(tmp_path):
    with pytest.raises(InputError, match="start_header"):
        HuggingFaceTokenizer(byte_level(tmp_path)).special("<|start_header_id|>")
    with pytest.raises(InputError, match="'e'"):
        HuggingFaceTokenizer(tmp_path).special("e")


def test_a_published_tokenizer_works_after_pickling(folder):
    tokenizer = HuggingFaceTokenizer(folder)
    assert pickle.loads(pickle.dumps(tokenizer)).encode(" a</s>") == tokenizer.encode(" a</s>")


_UNPICKLES = """
import json, pickle, sys
tokenizer = pickle.loads(sys.stdin.buffer.read())
print(json.dumps([tokenizer.encode("a ☃ b</s>"), tokenizer.special("☃")]))
assert "transformers" not in sys.modules and "jax" not in sys.modules
"""


def test_loader_processes_get_a_tokenizer_without_transformers(tmp_path):
    """Also when the files are gone; names of special tokens stay text there too."""
    tokenizer = HuggingFaceTokenizer(byte_level(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    command = [sys.executable, "-c", _UNPICKLES]
    done = subprocess.run(
        command, input=pickle.dumps(tokenizer), stdout=subprocess.PIPE, check=True, timeout=120
    )
    assert json.loads(done.stdout) == [tokenizer.encode("a ☃ b</s>"), tokenizer.special("☃")]


def test_unreadable_published_tokenizers_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="no tokenizer file"):
        HuggingFaceTokenizer(tmp_path)
    for content in ("{", "[]", '{"model": 3}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(InputError):
            HuggingFaceTokenizer(tmp_path)
