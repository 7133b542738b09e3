"""Tokenizers of published models: a tokenizer.json, read by the `tokenizers` package."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import tokenizers

from mmjax.errors import InputError

# Names that published tokenizers give to these tokens, where no tokenizer_config.json tells.
_KNOWN_NAMES = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>", "[CLS]", "<|endoftext|>"),
    "eos": ("</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]", "<|endoftext|>"),
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>"),
    "image": ("<image>", "<|image|>", "<|image_pad|>", "<image_soft_token>", "[IMG]"),
}


class HuggingFaceTokenizer:
    """A Tokenizer (mmjax.data.tokenizer) over a tokenizer.json.

    A text is encoded as it stands, wherever it stands: the space that SentencePiece-like tokenizers put before a text is not added, nor
    taken off again in decoding; and the names of special tokens within a text are ordinary characters.

    The tokens named in tokenizer_config.json come first, then customary names. Without a bos, eos takes its place (as in GPT-2); without a
    pad, too: padding is masked. Without an image token, an id is appended after the vocabulary.
    """

    def __init__(self, path: Path | str):
        """Reads `path`, a tokenizer.json or its folder. Raises InputError if it cannot be read or has no end-of-sequence token."""
        self.path = _find_file(path)
        config = _read_json(self.path.with_name("tokenizer_config.json"), optional=True)
        content = _without_dummy_prefix(_read_json(self.path))
        self._tokenizer = _build(content, self.path)
        self._ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary = max(self._ids.values()) + 1
        eos = self._find("eos", config)
        if eos is None:
            raise InputError(f"{self.path}: no end-of-sequence token; name it as eos_token in tokenizer_config.json.")
        bos, pad, image = (self._find(role, config) for role in ("bos", "pad", "image"))
        self.eos = eos
        self.bos = eos if bos is None else bos
        self.pad = eos if pad is None else pad
        self.image = self.vocabulary if image is None else image
        self.vocabulary = max(self.vocabulary, self.image + 1)
        self._specials = self._special_ids(content)

    def encode(self, text: str) -> list[int]:
        """Ids of the text; see `Tokenizer.encode`."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if index in self._specials and end - start > 1:  # its name stood in the text: cut within it, so that no token covers it
                return self.encode(text[: start + 1]) + self.encode(text[start + 1 :])
        return encoding.ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; see `Tokenizer.decode`."""
        return self._tokenizer.decode([index for index in map(int, ids) if index not in self._specials], skip_special_tokens=False)

    def special(self, name: str) -> int:
        """The id of a special token; see `Tokenizer.special`."""
        if self._ids.get(name) not in self._specials:
            raise InputError(f"{self.path} has no special token {name!r}; a template needs it.")
        return self._ids[name]

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self.path,)  # another process reads the file again: the settings do not survive pickling

    def _find(self, role: str, config: dict[str, Any]) -> int | None:
        named = config.get(f"{role}_token")
        name = named.get("content") if isinstance(named, dict) else named
        if name is not None:
            if name not in self._ids:
                raise InputError(f"{self.path}: tokenizer_config.json names {name!r} as {role}_token, but there is no such token.")
            return self._ids[name]
        return next((self._ids[known] for known in _KNOWN_NAMES[role] if known in self._ids), None)

    def _special_ids(self, content: dict[str, Any]) -> frozenset[int]:
        added = {token["id"] for token in content.get("added_tokens") or () if token.get("special")}
        unknown = self._ids.get((content.get("model") or {}).get("unk_token") or "")
        return frozenset((added | {self.pad, self.bos, self.eos, self.image}) - ({unknown} - {self.eos}))


def _find_file(path: Path | str) -> Path:
    path = Path(path).absolute()
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"There is no tokenizer file {file}.")
    return file


def _read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    if optional and not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"The tokenizer file {path} cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise InputError(f"The tokenizer file {path} does not hold a JSON object.")
    return content


def _build(content: dict[str, Any], path: Path) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the package raises no narrower type
        raise InputError(f"{path} is not a tokenizer: {error}.") from None
    tokenizer.encode_special_tokens = True  # names of special tokens in a text stay text
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _without_dummy_prefix(content: dict[str, Any]) -> dict[str, Any]:
    """Takes out what puts a space before a text, and what takes it off again: the ids of two texts in a row then mean just these texts."""
    parts = {name: _clean(content.get(name)) for name in ("normalizer", "pre_tokenizer", "decoder")}
    return {**content, **parts}


def _clean(part: dict[str, Any] | None) -> dict[str, Any] | None:
    if part is None or part["type"] == "Prepend" or (part["type"] == "Strip" and part.get("content") == " "):
        return None
    if part["type"] == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    if part["type"] == "ByteLevel":
        return {**part, "add_prefix_space": False}
    if part["type"] == "Sequence":
        name = next(name for name in ("normalizers", "pretokenizers", "decoders") if name in part)
        kept = [clean for clean in map(_clean, part[name]) if clean is not None]
        return {**part, name: kept} if kept else None
    return part
