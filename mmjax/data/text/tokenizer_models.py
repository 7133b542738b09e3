"""What a tokenizer.model must be before transformers reads it: of Llama 3, in tiktoken's format, or of SentencePiece."""

import base64
import dataclasses
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmjax.errors import InputError

# The sum of the squares of tokens' lengths; that of Llama 4, with 200,000 tokens, has 13 million.
_LONGEST = 2**26
_UNIGRAM, _BPE = 1, 2  # kinds of SentencePiece's models
_KINDS = {3: "words", 4: "characters"}
_CONTROL = 3  # a kind of its pieces

_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
_LLAMA3_RANKS = 128_000
_LLAMA3_SPECIALS = 256
_LLAMA3_NAMES = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A file that transformers can read.

    Attributes:
        name: by which transformers knows what it is.
        data: its bytes.
        tokens: those that it has.
        named: how many of them it says to be special tokens beside the vocabulary.
        added: how many of them stand in it as added tokens.
        options: with which `from_pretrained` is to read it.
    """

    name: str
    data: bytes
    tokens: set[str]
    named: int = 0
    added: int = 0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def read_model(data: bytes, file: Path, settings: dict[str, Any]) -> Vocabulary | None:
    """The vocabulary in a tokenizer.model; None if `data` has another form.

    Args:
        settings: what tokenizer_config.json says.

    Raises:
        InputError: the file is damaged, or changes texts in a way that is not implemented.
    """
    if _TIKTOKEN.match(data):
        # Else tiktoken leaves copies in a folder of all users, and reads such a copy for another file that comes to the same place.
        os.environ["TIKTOKEN_CACHE_DIR"] = ""
        return _read_tiktoken(data, file, settings)
    return _read_sentencepiece(data, file, settings) if file.suffix == ".model" else None


def unreadable(file: Path, error: Exception, folder: Path | None = None) -> InputError:
    """The error in one line, without the folder in which a copy of the file lies."""
    reason = (str(error).replace(f"{folder}/", "").splitlines() or [type(error).__name__])[0][:200]
    return InputError(f"The tokenizer file {file} cannot be read: {reason}.")


def _read_tiktoken(data: bytes, file: Path, settings: dict[str, Any]) -> Vocabulary:
    """Lines of a token in base64 and its rank, cut as Llama 3 cuts texts.

    Special tokens are those of `added_tokens_decoder` in tokenizer_config.json, or else Llama 3's.
    """
    lines = [line.split() for line in data.splitlines()]
    try:
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except ValueError as error:
        raise unreadable(file, error) from None
    if sorted(ranks.values()) != list(range(len(lines))) or any(
        bytes([byte]) not in ranks for byte in range(256)
    ):
        raise InputError(
            f"The tokenizer file {file} is damaged: its ranks are not 0, 1, 2 ..., or a byte has none."
        )
    _check_lengths(ranks, file)
    try:
        last = max(map(int, settings.get("added_tokens_decoder") or ()), default=None)
    except (TypeError, ValueError):
        raise InputError(
            f"{file}: added_tokens_decoder in tokenizer_config.json is not an object of tokens by id."
        ) from None
    names: list[str] = []
    if last is None:
        if len(ranks) != _LLAMA3_RANKS:
            raise InputError(
                f"{file} has {len(ranks)} tokens, Llama 3 has {_LLAMA3_RANKS}: it belongs to another model. Its special tokens must "
                "be named as added_tokens_decoder in tokenizer_config.json beside it."
            )
        reserved = (f"<|reserved_special_token_{number}|>" for number in range(2, _LLAMA3_SPECIALS))
        names = [*_LLAMA3_NAMES, *reserved][:_LLAMA3_SPECIALS]
        last = len(ranks) + len(names) - 1
    options = {"extra_special_tokens": names} if names else {}
    more = last + 1 - len(ranks)  # those between two added tokens get names too
    return Vocabulary("tiktoken.model", data, set(names), named=max(more, 0), options=options)


def _read_sentencepiece(data: bytes, file: Path, settings: dict[str, Any]) -> Vocabulary:
    """Pieces with scores. https://github.com/google/sentencepiece

    A space is put before a whole text, or before each that follows a special token where tokenizer_config.json says "legacy": true.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2  # takes a while to import, and few need it

    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise unreadable(file, error) from None
    pieces = [piece.piece for piece in model.pieces]
    if not pieces:
        raise InputError(f"{file} is no SentencePiece model.")
    kind, rules = model.trainer_spec.model_type, model.normalizer_spec
    if kind not in (_UNIGRAM, _BPE):
        raise InputError(
            f"{file} is a SentencePiece model of {_KINDS.get(kind, kind)}; mmjax reads BPE and Unigram."
        )
    if rules.precompiled_charsmap or rules.remove_extra_whitespaces or not rules.escape_whitespaces:
        raise InputError(
            f"{file} changes texts before it encodes them ({rules.name or 'white space'}), which mmjax does not. Convert it to a "
            "tokenizer.json with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)."
        )
    if len(set(pieces)) != len(pieces) or not all(isinstance(piece, str) for piece in pieces):
        raise InputError(
            f"The tokenizer file {file} is damaged: two of its pieces are the same, or one is no text."
        )
    _check_lengths(pieces, file)
    control = sum(piece.type == _CONTROL for piece in model.pieces)
    options = {"legacy": bool(settings.get("legacy"))}
    return Vocabulary("tokenizer.model", data, set(pieces), named=control, options=options)


def _check_lengths(tokens: Iterable[str | bytes], file: Path) -> None:
    """Every part of every token is looked up, to find of what it is merged."""
    if sum(len(token) ** 2 for token in tokens) > _LONGEST:
        raise InputError(f"{file} has tokens that are longer than those of any tokenizer.")
