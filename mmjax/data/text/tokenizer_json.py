"""What a tokenizer.json would hold, for vocabularies that are published in another form. The `tokenizers` package does the rest."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Content = dict[str, Any]
"""JSON data in the format of tokenizer.json."""

SPACE = "▁"
"""SentencePiece's sign for a space."""

# How a text is cut before bytes are merged. Patterns are those of the models' own tokenizers.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
QWEN2_SPLIT = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"


class Added(NamedTuple):
    """A token that is found in a text as a whole. `special`: only where a template writes it, never in what people wrote."""

    id: int
    name: str
    special: bool


_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_OTHERS = (chr(0x100 + number) for number in range(0x100))
BYTE_CHARACTERS = [chr(byte) if byte in _PRINTABLE else next(_OTHERS) for byte in range(0x100)]
"""GPT-2's character for each byte: itself where it is printable, else one of those that follow all bytes."""


def split_by(pattern: str) -> Sequence[Content]:
    """Pre-tokenizers that cut a text by a regular expression, in a byte-level tokenizer."""
    return (
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    )


DIGITS_THEN_GPT2: Sequence[Content] = (
    {"type": "Digits", "individual_digits": True},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
)


def byte_level(
    vocabulary: Mapping[str, int],
    merges: Iterable[tuple[str, str]],
    cut: Sequence[Content],
    added: Iterable[Added],
    *,
    whole_words: bool = False,
) -> Content:
    """A byte-level BPE tokenizer.

    Args:
        vocabulary: ids by token, spelled in `BYTE_CHARACTERS`.
        merges: pairs of tokens, the first to be merged first.
        cut: pre-tokenizers, the last of them of the type ByteLevel.
        whole_words: a word that is a token is this token, whatever its merges say (as in Llama 3).
    """
    return {
        "version": "1.0",
        "added_tokens": _added(added),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(cut)},
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": _bpe(vocabulary, merges, ignore_merges=whole_words),
    }


def sentence_piece(
    vocabulary: Mapping[str, int],
    merges: Iterable[tuple[str, str]],
    added: Iterable[Added],
    *,
    unknown: str | None,
    byte_fallback: bool,
    space: str = "first",
) -> Content:
    """A BPE tokenizer in the manner of SentencePiece.

    Args:
        vocabulary: ids by piece, with `SPACE` for a space.
        merges: as in `byte_level`.
        unknown: the piece for characters without one; with `byte_fallback` they become bytes.
        space: where a space is put before a text: "first" (of a whole text), "always" (after special tokens too) or "never".
    """
    return {
        "version": "1.0",
        "added_tokens": _added(added),
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": SPACE,
            "prepend_scheme": space,
            "split": False,
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": _bpe(
            vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback
        ),
    }


def merges_by_score(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """The pairs of pieces whose concatenation is a piece too, by its score, the highest first.

    SentencePiece merges the pair whose result has the highest score; a list of pairs, which `tokenizers` wants, says the same.
    """
    pairs = [
        (-score, len(piece) - cut, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for _, _, left, right in sorted(pairs)]


def _bpe(
    vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]], **options: Any
) -> Content:
    defaults: Content = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return (
        defaults | options | {"vocab": dict(vocabulary), "merges": [list(pair) for pair in merges]}
    )


def _added(tokens: Iterable[Added]) -> list[Content]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": number, "content": name, **flags, "special": special}
        for number, name, special in tokens
    ]
