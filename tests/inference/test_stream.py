"""Text appears as soon as it is certain, whole characters at a time, and nothing is lost."""

import functools

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from mmjax.data.text.tokenizer import WordTokenizer
from mmjax.inference.streaming import REPLACEMENT, TextStream

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(
    lambda text: not text.endswith(REPLACEMENT)
)


@functools.cache
def byte_level() -> tokenizers.Tokenizer:
    """A token for each byte, and two merged ones that end within a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ã", "Ł"), ("ð", "Ł")]
    vocabulary = {
        piece: index for index, piece in enumerate([*alphabet, *("".join(pair) for pair in merges)])
    }
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@functools.cache
def byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2 has it: letters, and bytes for all else."""
    pieces = ["<unk>", *(f"<0x{value:02X}>" for value in range(256)), "▁", *"abcdefgh"]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            {piece: index for index, piece in enumerate(pieces)},
            [],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def shown(decode, ids: list[int]) -> list[str]:
    """The text, token by token, and what comes at the end."""
    stream = TextStream(decode)
    return [*(stream.add(token) for token in ids), stream.end()]


@given(TEXTS)
def test_all_of_a_text_is_shown_and_no_half_of_a_character(text: str):
    for make in (byte_level, byte_fallback):
        tokenizer = make()
        pieces = shown(tokenizer.decode, tokenizer.encode(text, add_special_tokens=False).ids)
        expected = text.replace("▁", " ") if make is byte_fallback else text
        assert "".join(pieces) == expected
        assert sum(piece.count(REPLACEMENT) for piece in pieces) == text.count(REPLACEMENT)


@given(TEXTS)
def test_a_tokenizer_of_words(text: str):
    tokenizer = WordTokenizer([" a", "b"])
    assert "".join(shown(tokenizer.decode, tokenizer.encode(text))) == text


def test_letters_are_not_held_back():
    tokenizer = byte_level()
    assert shown(tokenizer.decode, tokenizer.encode("häh").ids) == ["h", "", "ä", "h", ""]


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_half_a_character_at_the_end_is_dropped(make):
    tokenizer = make()
    ids = tokenizer.encode("ab😀").ids
    for left in range(1, 4):
        assert "".join(shown(tokenizer.decode, ids[:-left])) == "ab"
    assert "".join(shown(tokenizer.decode, tokenizer.encode("ab😀😀").ids[:-1])) == "ab😀"


def test_bytes_that_are_no_character_are_shown_once_something_follows():
    tokenizer = byte_level()
    broken = tokenizer.encode("😀").ids[-1]
    after = tokenizer.encode("a").ids
    assert "".join(shown(tokenizer.decode, [broken, *after])) == f"{REPLACEMENT}a"


def test_a_token_may_read_otherwise_behind_another():
    tokenizer = tokenizers.Tokenizer(models.WordPiece({"play": 0, "##ing": 1, "[UNK]": 2}))
    tokenizer.decoder = decoders.WordPiece()
    assert shown(tokenizer.decode, [0, 1, 0]) == ["play", "ing", " play", ""]
