"""The tokenizer in a GGUF file: vocabulary, merges and roles stand among its fields. Format: docs/gguf.md of ggml, section Tokenizer.

The pre-tokenizer, which a file only names, is the one that llama.cpp has under this name; it is also that of the model's own tokenizer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.data.text import tokenizer_json
from mmjax.data.text.tokenizer_json import Added, Content
from mmjax.errors import InputError

# Types of tokens.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

_CUTS: dict[str, Sequence[Content]] = {
    "smollm": tokenizer_json.DIGITS_THEN_GPT2,
    "llama-bpe": tokenizer_json.split_by(tokenizer_json.LLAMA3_SPLIT),
    "qwen2": tokenizer_json.split_by(tokenizer_json.QWEN2_SPLIT),
}
_WHOLE_WORDS = ("llama-bpe",)
_ROLES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}


def read_gguf(path: Path) -> tuple[Content, dict[str, Any]]:
    """The tokenizer of a GGUF file, as tokenizer.json and tokenizer_config.json would say it.

    Raises:
        InputError: the file is damaged, or has no tokenizer or one of a kind that mmjax does not know.
    """
    # Their package brings the models along, which loader processes do without.
    from mmjax.weights.gguf import parse_header
    from mmjax.weights.tensors import DiskFile

    file = DiskFile(path)
    try:
        fields, _ = parse_header(file)
    finally:
        file.close()
    return from_fields(fields, path)


def from_fields(fields: Mapping[str, Any], path: Path) -> tuple[Content, dict[str, Any]]:
    """The same, from the fields of a file. `path` is for messages."""
    reader = _Fields(fields, path)
    model = reader.value("model", str)
    vocabulary = {token: index for index, token in enumerate(reader.tokens)}
    merges = reader.merges()
    if model == "gpt2":
        cut = reader.value("pre", str, "default")
        if cut not in _CUTS:
            known = ", ".join(map(repr, _CUTS))
            raise InputError(
                f"{path} cuts texts in the manner of {cut!r}, which mmjax does not know; it knows {known}."
            )
        content = tokenizer_json.byte_level(
            vocabulary, merges, _CUTS[cut], reader.added(), whole_words=cut in _WHOLE_WORDS
        )
    elif model == "llama":
        if not merges:
            scores = reader.items("scores", float)
            if len(scores) != len(reader.tokens):
                raise reader.damaged(f"it has {len(scores)} scores for {len(reader.tokens)} tokens")
            rows = zip(reader.tokens, scores, reader.types, strict=True)
            merges = tokenizer_json.merges_by_score(
                {token: score for token, score, kind in rows if kind == _NORMAL}
            )
        content = tokenizer_json.sentence_piece(
            vocabulary,
            merges,
            reader.added(),
            unknown=reader.token("unknown_token_id"),
            byte_fallback=_BYTE in reader.types,
            space="first" if reader.value("add_space_prefix", bool, True) else "never",
        )
    else:
        raise InputError(
            f"{path} has a tokenizer of the kind {model!r}; mmjax reads 'gpt2' (byte-level BPE) and 'llama' (SentencePiece)."
        )
    settings: dict[str, Any] = {
        role: reader.token(f"{name}_token_id") for role, name in _ROLES.items()
    }
    template = fields.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise reader.damaged(f"tokenizer.chat_template is {str(template)[:40]!r}")
    return content, settings | {"chat_template": template}


class _Fields:
    """The fields "tokenizer.ggml.*" with the types that they must have."""

    def __init__(self, fields: Mapping[str, Any], path: Path):
        self._fields, self.path = fields, path
        self.tokens: list[str] = self.items("tokens", str)
        types: list[int] = self.items("token_type", int, optional=True) or [_NORMAL] * len(
            self.tokens
        )
        if len(types) != len(self.tokens) or len(set(self.tokens)) != len(self.tokens):
            raise self.damaged("its tokens are not distinct, or not as many as their types")
        self.types = types

    def value[T](self, name: str, kind: type[T], default: T | None = None) -> T:
        value = self._fields.get(f"tokenizer.ggml.{name}", default)
        if value is None:
            raise InputError(
                f"{self.path} has no tokenizer: the field tokenizer.ggml.{name} is missing."
            )
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.damaged(f"tokenizer.ggml.{name} is {str(value)[:40]!r}")
        return value

    def items[T](self, name: str, kind: type[T], *, optional: bool = False) -> list[T]:
        items: list[T] = self.value(name, list, [] if optional else None)
        if not all(isinstance(item, kind) for item in items):
            raise self.damaged(f"tokenizer.ggml.{name} is no list of {kind.__name__}")
        return items

    def token(self, name: str) -> str | None:
        """The token that a field gives the id of."""
        index = self.value(name, int, -1)
        if index >= len(self.tokens):
            raise self.damaged(f"tokenizer.ggml.{name} is {index}, of {len(self.tokens)} tokens")
        return self.tokens[index] if index >= 0 else None

    def merges(self) -> list[tuple[str, str]]:
        pairs = [merge.split(" ") for merge in self.items("merges", str, optional=True)]
        if any(len(pair) != 2 for pair in pairs):
            raise self.damaged("tokenizer.ggml.merges has an entry that is no pair")
        return [(left, right) for left, right in pairs]

    def added(self) -> list[Added]:
        """Control tokens, and those that the model's author defined beside them."""
        named = (_CONTROL, _USER_DEFINED)
        tokens = zip(self.tokens, self.types, strict=True)
        return [
            Added(index, token, kind == _CONTROL)
            for index, (token, kind) in enumerate(tokens)
            if kind in named
        ]

    def damaged(self, what: str) -> InputError:
        return InputError(f"The tokenizer in {self.path} is damaged: {what}.")
