"""Tokenizers of published models, run by the `tokenizers` package."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

import tokenizers

from mmjax.data.text.tokenizer_files import read_tokenizer
from mmjax.errors import InputError

# Names that published tokenizers give to these tokens, where no tokenizer_config.json tells.
_KNOWN_NAMES = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>", "[CLS]", "<|endoftext|>"),
    "eos": ("</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]", "<|endoftext|>"),
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>"),
    "image": ("<image>", "<|image|>", "<|image_pad|>", "<image_soft_token>", "[IMG]"),
}


PrefixSpace = Literal["never", "first", "always", "again"]
"""Where a tokenizer puts a space of its own: before a whole text that begins without one; also before each text that follows a special
token; the same, even before a text that begins with a space."""


class HuggingFaceTokenizer:
    """A Tokenizer (mmjax.data.text.tokenizer) of a published model: tokenizer.json, tokenizer.model, or a GGUF file.

    A text is encoded as it stands, wherever it stands: the space that SentencePiece-like tokenizers put before a text is not added, nor
    taken off again in decoding; and the names of special tokens within a text are ordinary characters.

    The tokens named in tokenizer_config.json come first, then customary names. Without a bos, eos takes its place (as in GPT-2); without a
    pad, too: padding is masked. Without an image token, an id is appended after the vocabulary.

    Attributes:
        path: the file that holds the vocabulary.
        special_tokens: ids of the special tokens by name.
        names: of the tokens of roles that the files name, as a chat template calls them: {"bos_token": "<s>"}.
        swallows: for special tokens that take white space along, on which sides: {"<|end|>": (False, True)}.
        chat_template: the model's own, in the language of jinja, or None.
        prefix_space: what `encode` does not do, but a chat template's text is made for.
        begins: the special token that it would put before a whole text, which `encode` does not do either; "" if none.
    """

    def __init__(self, path: Path | str):
        """Reads `path`, as `read_tokenizer` does. Raises InputError if it cannot be read or has no end-of-sequence token."""
        files = read_tokenizer(path)
        self.path = files.path
        self.chat_template = files.chat_template
        self._settings = files.settings
        try:
            self.prefix_space = _prefix_space(files.content)
            # Without what puts a space before a text and takes it off again, the ids of two texts in a row mean just these texts.
            parts = ("normalizer", "pre_tokenizer", "decoder")
            content = files.content | {
                name: _without_prefix_space(files.content.get(name)) for name in parts
            }
        except (AttributeError, KeyError, StopIteration, TypeError):
            raise InputError(
                f"{self.path} is not a tokenizer: its normalizer, pre_tokenizer or decoder is damaged."
            ) from None
        self._tokenizer = _build(content, self.path)
        self._ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary = max(self._ids.values()) + 1
        eos = self._find("eos")
        if eos is None:
            raise InputError(
                f"{self.path}: no end-of-sequence token; name it as eos_token in tokenizer_config.json."
            )
        bos, pad, image = (self._find(role) for role in ("bos", "pad", "image"))
        self.eos = eos
        self.bos = eos if bos is None else bos
        self.pad = eos if pad is None else pad
        self.image = self.vocabulary if image is None else image
        self.vocabulary = max(self.vocabulary, self.image + 1)
        added = files.content.get("added_tokens") or ()
        unknown = self._ids.get((files.content.get("model") or {}).get("unk_token") or "")
        specials = {token["id"] for token in added if token.get("special")}
        specials |= {self.pad, self.bos, self.eos, self.image}
        self._specials = frozenset(specials - ({unknown} - {self.eos}))
        self.special_tokens = {
            name: index for name, index in self._ids.items() if index in self._specials
        }
        self.names = self._role_names()
        first = next(iter(self._tokenizer.encode("").tokens), "")
        self.begins = first if self._ids.get(first) == self.bos != self.eos else ""
        self.swallows = {
            token["content"]: (bool(token.get("lstrip")), bool(token.get("rstrip")))
            for token in added
            if token.get("special") and (token.get("lstrip") or token.get("rstrip"))
        }

    def encode(self, text: str) -> list[int]:
        """Ids of the text; see `Tokenizer.encode`."""
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # the package raises no narrower type
            raise InputError(f"{self.path} cannot encode {text[:40]!r}: {error}.") from None
        for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            # Its name stood in the text: cut within it, so that no token covers it.
            if index in self._specials and end - start > 1:
                return self.encode(text[: start + 1]) + self.encode(text[start + 1 :])
        return encoding.ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; see `Tokenizer.decode`."""
        return self._tokenizer.decode(
            [index for index in map(int, ids) if index not in self._specials],
            skip_special_tokens=False,
        )

    def special(self, name: str) -> int:
        """The id of a special token; see `Tokenizer.special`."""
        if self._ids.get(name) not in self._specials:
            raise InputError(f"{self.path} has no special token {name!r}; a template needs it.")
        return self._ids[name]

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        # Another process reads the file again: the settings do not survive pickling.
        return type(self), (self.path,)

    def _named(self, role: str) -> str | None:
        """The token that tokenizer_config.json gives a role."""
        named = self._settings.get(f"{role}_token")
        name = named.get("content") if isinstance(named, dict) else named
        if name is not None and not isinstance(name, str):
            raise InputError(
                f"{self.path}: tokenizer_config.json has {str(name)[:40]!r} as {role}_token, which is no text."
            )
        return name

    def _find(self, role: str) -> int | None:
        name = self._named(role)
        if name is not None:
            if name not in self._ids:
                raise InputError(
                    f"{self.path}: tokenizer_config.json names {name!r} as {role}_token, but there is no such token."
                )
            return self._ids[name]
        return next((self._ids[known] for known in _KNOWN_NAMES[role] if known in self._ids), None)

    def _role_names(self) -> dict[str, str]:
        """Where nothing names any, those that were found by customary names."""
        named = {
            f"{role}_token": name
            for role in (*_KNOWN_NAMES, "unk")
            if (name := self._named(role)) is not None
        }
        if self._settings:
            return named
        by_id = {index: name for name, index in self.special_tokens.items()}
        return {
            f"{role}_token": by_id[index]
            for role in ("bos", "eos")
            if (index := self._find(role)) is not None
        }


def _prefix_space(content: dict[str, Any]) -> PrefixSpace:
    """What `_without_prefix_space` takes out."""
    for part in _parts(content.get("normalizer")):
        if part["type"] == "Prepend":
            return "again"
    for part in _parts(content.get("pre_tokenizer")):
        if part["type"] == "Metaspace":
            scheme: PrefixSpace = part.get("prepend_scheme") or (
                "always" if part.get("add_prefix_space", True) else "never"
            )
            return scheme
        if part["type"] == "ByteLevel" and part.get("add_prefix_space"):
            return "always"
    return "never"


def _parts(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer, or the members of a sequence of them."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [
            inner
            for name in ("normalizers", "pretokenizers")
            for member in part.get(name, ())
            for inner in _parts(member)
        ]
    return [part]


def _build(content: dict[str, Any], path: Path) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the package raises no narrower type
        raise InputError(f"{path} is not a tokenizer: {error}.") from None
    tokenizer.encode_special_tokens = True  # names of special tokens in a text stay text
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _without_prefix_space(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer, pre-tokenizer or decoder without what puts a space before a text, or takes it off again."""
    if (
        part is None
        or part["type"] == "Prepend"
        or (part["type"] == "Strip" and part.get("content") == " ")
    ):
        return None
    if part["type"] == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    if part["type"] == "ByteLevel":
        return {**part, "add_prefix_space": False}
    if part["type"] == "Sequence":
        name = next(name for name in ("normalizers", "pretokenizers", "decoders") if name in part)
        kept = [clean for clean in map(_without_prefix_space, part[name]) if clean is not None]
        return {**part, name: kept} if kept else None
    return part
