"""The tokenizer of Llama 3 as its authors publish it: `tokenizer.model`, lines of a token in base64 and its rank (tiktoken's format)."""

import base64
import binascii
import re
from pathlib import Path
from typing import Any

from mmjax.base.files import read_regular
from mmjax.data.text import tokenizer_json
from mmjax.data.text.tokenizer_json import Added, Content
from mmjax.errors import InputError

_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")

LLAMA3_RANKS = 128_000
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


def is_tiktoken(beginning: bytes) -> bool:
    """Whether a file that begins so is in this format."""
    return _LINE.match(beginning) is not None


def read_tiktoken(path: Path, settings: dict[str, Any]) -> Content:
    """The tokenizer in a file, cut as Llama 3 cuts texts.

    Special tokens are those of `added_tokens_decoder` in tokenizer_config.json (`settings`), or else Llama 3's.

    Raises:
        InputError: the file is damaged, or it is not Llama 3's and nothing says which special tokens it has.
    """
    ranks = _read_ranks(path)
    vocabulary = {tokenizer_json.in_byte_characters(token): rank for token, rank in ranks.items()}
    added = _special_tokens(settings, len(ranks), path)
    vocabulary.update({token.name: token.id for token in added})
    scores = {tokenizer_json.in_byte_characters(token): -rank for token, rank in ranks.items()}
    merges = tokenizer_json.merges_by_score(scores)
    return tokenizer_json.byte_level(
        vocabulary,
        merges,
        tokenizer_json.split_by(tokenizer_json.LLAMA3_SPLIT),
        added,
        whole_words=True,
    )


def _read_ranks(path: Path) -> dict[bytes, int]:
    try:
        lines = [
            line.split()
            for line in read_regular(path, tokenizer_json.LARGEST, "tokenizer").splitlines()
        ]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except (ValueError, binascii.Error) as error:
        raise InputError(f"The tokenizer file {path} cannot be read: {error}.") from None
    if sorted(ranks.values()) != list(range(len(lines))) or any(
        bytes([byte]) not in ranks for byte in range(256)
    ):
        raise InputError(
            f"The tokenizer file {path} is damaged: its ranks are not 0, 1, 2 ..., or a byte has none."
        )
    return ranks


def _special_tokens(settings: dict[str, Any], ranks: int, path: Path) -> list[Added]:
    """Those that the settings name, by id; else Llama 3's."""
    try:
        named = sorted(
            (int(index), token)
            for index, token in (settings.get("added_tokens_decoder") or {}).items()
        )
        added = [
            Added(index, str(token["content"]), bool(token.get("special")))
            for index, token in named
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(
            f"{path}: added_tokens_decoder in tokenizer_config.json is not an object of tokens by id."
        ) from None
    if added:
        return added
    if ranks != LLAMA3_RANKS:
        raise InputError(
            f"{path} has {ranks} tokens, Llama 3 has {LLAMA3_RANKS}: it belongs to another model. Its special tokens must be named "
            "as added_tokens_decoder in tokenizer_config.json beside it."
        )
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(2, _LLAMA3_SPECIALS))
    names = [*_LLAMA3_NAMES, *reserved][:_LLAMA3_SPECIALS]
    return [Added(ranks + number, name, True) for number, name in enumerate(names)]
