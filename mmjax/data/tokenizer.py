"""Text to token ids and back: the protocol, and the word-level tokenizer that a run builds from its own training text."""

import collections
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, Self

from mmjax.data.huggingface_tokenizer import HuggingFaceTokenizer
from mmjax.errors import InputError

__all__ = ["HuggingFaceTokenizer", "Tokenizer", "WordTokenizer", "open_tokenizer"]

# A word or a run of punctuation takes one space before it along; the alternatives cover every string, so that no character is lost.
_PIECE = re.compile(r" ?\w+| ?[^\w\s]+|\s+(?!\S)|\s+")
_ROLES = ("pad", "bos", "eos", "image")
_BYTES = 256
_FORMAT = "mmjax-words"
_VERSION = 1


class Tokenizer(Protocol):
    """What the rest of mmjax asks of a tokenizer.

    Attributes:
        vocabulary: number of ids, special ones included.
        pad, bos, eos, image: ids; `image` stands at the place of every visual token.
    """

    vocabulary: int
    pad: int
    bos: int
    eos: int
    image: int

    def encode(self, text: str) -> list[int]:
        """Ids of the text, which is taken as it stands: nothing is added, and no part of it becomes a special token."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids. Special tokens are left out; bytes that are not UTF-8 become the replacement character."""
        ...

    def special(self, name: str) -> int:
        """The id of the special token of that name. Raises InputError when the tokenizer has none."""
        ...


def open_tokenizer(path: Path | str) -> HuggingFaceTokenizer:
    """The tokenizer of a published model.

    Args:
        path: tokenizer.json, tokenizer.model (Llama 3's, or SentencePiece's), a GGUF file, or a folder with one of these.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    return HuggingFaceTokenizer(path)


class WordTokenizer:
    """Words with their leading space, and 256 byte tokens for everything else: decode(encode(text)) == text for any text.

    Ids: pad, bos, eos, image, further special tokens, 256 bytes, then the pieces.
    """

    def __init__(self, pieces: Sequence[str], special_tokens: Sequence[str] = ()):
        names = (*_ROLES, *special_tokens)
        if len(set(names)) != len(names) or len(set(pieces)) != len(pieces):
            raise InputError("A word tokenizer's pieces and special tokens must each be distinct.")
        self.pieces = tuple(pieces)
        self.special_tokens = tuple(special_tokens)
        self.pad, self.bos, self.eos, self.image = range(len(_ROLES))
        self._specials = {name: index for index, name in enumerate(names)}
        self._first_byte = len(names)
        self._ids = {piece: len(names) + _BYTES + index for index, piece in enumerate(pieces)}
        self._bytes = [bytes([value]) for value in range(_BYTES)] + [_to_bytes(piece) for piece in pieces]
        self.vocabulary = len(names) + len(self._bytes)

    @classmethod
    def build(cls, texts: Iterable[str], *, max_size: int | None = None, special_tokens: Sequence[str] = ()) -> Self:
        """The tokenizer of every piece in `texts`, the most frequent first (then by text), so it depends on nothing else.

        Args:
            texts: training text; each is cut into pieces on its own, as `encode` does.
            max_size: bound on the vocabulary; the rarest pieces fall back to bytes.
            special_tokens: names beyond pad, bos, eos and image, as a template needs them.
        """
        fixed = len(_ROLES) + len(special_tokens) + _BYTES
        if max_size is not None and max_size < fixed:
            raise InputError(f"A word tokenizer needs room for {fixed} special and byte tokens; max_size is {max_size}.")
        counts = collections.Counter(piece for text in texts for piece in _PIECE.findall(text))
        pieces = sorted(counts, key=lambda piece: (-counts[piece], piece))
        return cls(pieces if max_size is None else pieces[: max_size - fixed], special_tokens)

    def encode(self, text: str) -> list[int]:
        """Ids of the text; see `Tokenizer.encode`."""
        ids = []
        for piece in _PIECE.findall(text):
            known = self._ids.get(piece)
            ids.extend([known] if known is not None else [self._first_byte + value for value in _to_bytes(piece)])
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; see `Tokenizer.decode`. Raises IndexError for an id outside the vocabulary."""
        data = b"".join(self._bytes[index - self._first_byte] for index in map(int, ids) if index >= self._first_byte)
        try:
            return data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return data.decode("utf-8", "replace")

    def special(self, name: str) -> int:
        """The id of a special token; see `Tokenizer.special`."""
        if name not in self._specials:
            raise InputError(f"This word tokenizer has no special token {name!r}; it has {', '.join(self._specials)}.")
        return self._specials[name]

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the ids: two tokenizers agree exactly when their digests do."""
        return _digest(self._content())

    def save(self, path: Path | str) -> None:
        """Writes a JSON file in one step, so that no half-written one is ever found."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps({**self._content(), "digest": self.digest}, indent=1), encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads what `save` wrote. Raises InputError for a missing, foreign, newer or damaged file."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"There is no tokenizer file {path}.") from None
        except (OSError, ValueError) as error:
            raise InputError(f"The tokenizer file {path} cannot be read: {error}.") from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise InputError(f"{path} is not a word tokenizer of mmjax.")
        if content.get("version") != _VERSION:
            raise InputError(f"{path} has version {content.get('version')}; this mmjax reads version {_VERSION}.")
        if content.pop("digest", None) != _digest(content):
            raise InputError(f"The tokenizer file {path} was changed or damaged: its digest does not match.")
        return cls(content["pieces"], content["special_tokens"])

    def _content(self) -> dict:
        return {"format": _FORMAT, "version": _VERSION, "special_tokens": list(self.special_tokens), "pieces": list(self.pieces)}


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # lone surrogates exist in Python strings and must survive too


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
