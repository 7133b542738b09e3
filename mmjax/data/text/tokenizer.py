"""Text to token ids and back, and segments to the tokens, targets and images of a row.

`Tokenizer` is the protocol, `WordTokenizer` the word-level one that a run builds from its own training text. `tokenise` says which tokens
carry loss; `SegmentTokenizer` does it for prefixes and continuations, each text once.
"""

import collections
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from mmjax.base.files import read_regular
from mmjax.data.examples import Image, Segment, Special, Text
from mmjax.data.text.huggingface_tokenizer import HuggingFaceTokenizer
from mmjax.errors import InputError
from mmjax.typing import NO_TARGET

__all__ = ["HuggingFaceTokenizer", "Tokenizer", "WordTokenizer", "open_tokenizer"]

# A word or a run of punctuation takes one space before it along; the alternatives cover every string, so that no character is lost.
_PIECE = re.compile(r" ?\w+| ?[^\w\s]+|\s+(?!\S)|\s+")
_ROLES = ("pad", "bos", "eos", "image")
_BYTES = 256
_FORMAT = "mmjax-words"
_VERSION = 1
_LARGEST = 128 * 1024 * 1024  # bytes of a file


class Tokenizer(Protocol):
    """What the rest of mmjax asks of a tokenizer.

    Attributes:
        vocabulary: number of ids, special ones included.
        pad, bos, eos, image: ids; `image` stands at the place of every visual token.
        has_bos: whether texts begin with bos. Else bos is eos, and stands only before what is to be learned from its first token on.
    """

    vocabulary: int
    has_bos: bool
    pad: int
    bos: int
    eos: int
    image: int

    def encode(self, text: str) -> list[int]:
        """Ids of the text, which is taken as it stands: nothing is added, and no part of it becomes a special token."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids. Special tokens are skipped; bytes that are not UTF-8 become the replacement character."""
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

    has_bos = True

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
        self._bytes = [bytes([value]) for value in range(_BYTES)] + [
            _to_bytes(piece) for piece in pieces
        ]
        self.vocabulary = len(names) + len(self._bytes)

    @classmethod
    def build(
        cls,
        texts: Iterable[str],
        *,
        max_size: int | None = None,
        special_tokens: Sequence[str] = (),
    ) -> Self:
        """The tokenizer of every piece in `texts`, the most frequent first (then by text), so it depends on nothing else.

        Args:
            texts: training text; each is cut into pieces on its own, as `encode` does.
            max_size: bound on the vocabulary; the rarest pieces fall back to bytes.
            special_tokens: names beyond pad, bos, eos and image, as a template needs them.
        """
        fixed = len(_ROLES) + len(special_tokens) + _BYTES
        if max_size is not None and max_size < fixed:
            raise InputError(
                f"max_size of a word tokenizer must be at least its {fixed} special and byte tokens, not {max_size}."
            )
        counts = collections.Counter(piece for text in texts for piece in _PIECE.findall(text))
        pieces = sorted(counts, key=lambda piece: (-counts[piece], piece))
        return cls(pieces if max_size is None else pieces[: max_size - fixed], special_tokens)

    def encode(self, text: str) -> list[int]:
        """Ids of the text; see `Tokenizer.encode`."""
        ids = []
        for piece in _PIECE.findall(text):
            known = self._ids.get(piece)
            ids.extend(
                [known]
                if known is not None
                else [self._first_byte + value for value in _to_bytes(piece)]
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; see `Tokenizer.decode`. Raises IndexError for an id outside the vocabulary."""
        first = self._first_byte
        data = b"".join(self._bytes[index - first] for index in map(int, ids) if index >= first)
        try:
            return data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return data.decode("utf-8", "replace")

    def unknown_words(self, text: str) -> list[str]:
        """Words of a text that stand in no training text, neither behind a space nor without: the model reads bytes that it never met."""
        words = dict.fromkeys(piece.strip() for piece in _PIECE.findall(text))
        return [
            word
            for word in words
            if word.isalnum() and not (word in self._ids or f" {word}" in self._ids)
        ]

    def special(self, name: str) -> int:
        """The id of a special token; see `Tokenizer.special`."""
        if name not in self._specials:
            raise InputError(
                f"This word tokenizer has no special token {name!r}; it has {', '.join(self._specials)}."
            )
        return self._specials[name]

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the ids: two tokenizers agree exactly when their digests do."""
        return _digest(self._content())

    def save(self, path: Path | str) -> None:
        """Writes a JSON file in one step, so that no half-written one is ever found."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(
            json.dumps({**self._content(), "digest": self.digest}, indent=1), encoding="utf-8"
        )
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads what `save` wrote. Raises InputError for a missing, foreign, newer or damaged file."""
        if not os.path.lexists(path):
            raise InputError(f"There is no tokenizer file {path}.")
        try:
            content = json.loads(read_regular(Path(path), _LARGEST, "tokenizer").decode("utf-8"))
        except ValueError as error:
            raise InputError(f"The tokenizer file {path} cannot be read: {error}.") from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise InputError(f"{path} is not a word tokenizer of mmjax.")
        if content.get("version") != _VERSION:
            raise InputError(
                f"{path} has version {content.get('version')}; this mmjax reads version {_VERSION}."
            )
        if content.pop("digest", None) != _digest(content):
            raise InputError(
                f"The tokenizer file {path} was changed or damaged: its digest does not match."
            )
        return cls(content["pieces"], content["special_tokens"])

    def _content(self) -> dict:
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "special_tokens": list(self.special_tokens),
            "pieces": list(self.pieces),
        }


def _to_bytes(text: str) -> bytes:
    # Lone surrogates exist in Python strings and must survive too.
    return text.encode("utf-8", "surrogatepass")


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TokenizedText:
    """The tokens of a prefix or of a continuation.

    Attributes:
        tokens: [t] int32; an image is a run of `visual_tokens` times the tokenizer's image id.
        loss: [t] bool, the tokens that the model learns to produce.
        images: (offset of its first visual token, image), in order.
    """

    tokens: np.ndarray
    loss: np.ndarray
    images: tuple[tuple[int, Image], ...]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def targets(self) -> np.ndarray:
        """[t] int32: at each position the next token, where that one carries loss, else -1. Nothing follows the last position."""
        targets = np.full(len(self.tokens), NO_TARGET, np.int32)
        targets[:-1] = np.where(self.loss[1:], self.tokens[1:], NO_TARGET)
        return targets

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, targets) of a continuation: without its last token, which nothing follows and which therefore serves as a target only.

        The last token stays where it belongs to an image: its visual tokens are taken whole.
        """
        targets = self.targets
        ends_in_image = False
        if self.images:
            offset = self.images[-1][0]
            ends_in_image = bool((self.tokens[offset:] == self.tokens[offset]).all())
        if not len(self.tokens) or ends_in_image:
            return self.tokens, targets
        return self.tokens[:-1], targets[:-1]


def tokenise(
    segments: Sequence[Segment],
    tokenizer: Tokenizer,
    visual_tokens: int,
    *,
    train_on_special_tokens: bool = False,
) -> TokenizedText:
    """Tokenises each segment once and on its own: labels follow from where a segment stands, never from searching in the tokens.

    A prompt therefore has the same tokens with and without its answer behind it.

    Args:
        segments: a prefix or a continuation.
        visual_tokens: L, placeholders per image.
        train_on_special_tokens: special tokens carry loss wherever they stand, but the first one of a text does not.
    """
    tokens: list[int] = []
    loss: list[bool] = []
    images: list[tuple[int, Image]] = []
    roles = {"bos": tokenizer.bos, "eos": tokenizer.eos}
    for place, segment in enumerate(segments):
        match segment:
            case Text(text, has_loss):
                ids = tokenizer.encode(text)
            case Special("bos") if not tokenizer.has_bos and _begins_without(segments[place + 1 :]):
                continue
            case Special(name, has_loss):
                ids = [roles[name] if name in roles else tokenizer.special(name)]
                has_loss = has_loss or (train_on_special_tokens and name != "bos")
            case Image():
                images.append((len(tokens), segment))
                ids, has_loss = [tokenizer.image] * visual_tokens, False
        tokens.extend(ids)
        loss.extend([has_loss] * len(ids))
    return TokenizedText(np.array(tokens, np.int32), np.array(loss, bool), tuple(images))


def _begins_without(following: Sequence[Segment]) -> bool:
    """Whether a text or an image stands before the first token that carries loss, which then needs no other to be predicted from."""
    written = [part for part in following if not (isinstance(part, Text) and not part.text)]
    return bool(written) and (isinstance(written[0], Image) or not written[0].loss)


_KEPT = 16_384
"""Segments kept in memory: all of a set with few distinct texts, and under a hundred megabytes of one with long ones."""


@dataclass(frozen=True, eq=False)
class TokenizedSegment:
    """One segment of a row.

    Attributes:
        tokens, targets: [t] int32, as in Batch.
        images: (offset of its first visual token, image), in order.
        text: how many of the tokens are no visual ones.
        supervised: how many positions have a target.
    """

    tokens: np.ndarray
    targets: np.ndarray
    images: tuple[tuple[int, Image], ...]
    text: int
    supervised: int


class SegmentTokenizer:
    """Tokenises segments; those without images are remembered. It can be sent to another process and used from several threads."""

    def __init__(
        self, tokenizer: Tokenizer, visual_tokens: int, train_on_special_tokens: bool = False
    ):
        """visual_tokens: L, placeholders per image. train_on_special_tokens: as in `tokenise`."""
        self.tokenizer = tokenizer
        self.visual_tokens = visual_tokens
        self.train_on_special_tokens = train_on_special_tokens
        self._remembered = lru_cache(maxsize=_KEPT)(self._tokenised)

    def prefix(self, segments: tuple[Segment, ...]) -> TokenizedSegment:
        """A prefix, whole: what a continuation begins with is no target, as continuations share what stands before."""
        return self._lookup(segments, True)

    def continuation(self, segments: tuple[Segment, ...]) -> TokenizedSegment:
        """A continuation, without its last token where that is only a target."""
        return self._lookup(segments, False)

    def _lookup(self, segments: tuple[Segment, ...], whole: bool) -> TokenizedSegment:
        # With an image, it would be held in memory with its pixels, and never be met again.
        if any(isinstance(segment, Image) for segment in segments):
            return self._tokenised(segments, whole)
        return self._remembered(segments, whole)

    def _tokenised(self, segments: tuple[Segment, ...], whole: bool) -> TokenizedSegment:
        text = tokenise(
            segments,
            self.tokenizer,
            self.visual_tokens,
            train_on_special_tokens=self.train_on_special_tokens,
        )
        tokens, targets = (text.tokens, text.targets) if whole else text.inputs()
        visual = len(text.images) * self.visual_tokens
        supervised = int(np.count_nonzero(targets != NO_TARGET))
        return TokenizedSegment(tokens, targets, text.images, len(tokens) - visual, supervised)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "tokenizer": self.tokenizer,
            "visual_tokens": self.visual_tokens,
            "train_on_special_tokens": self.train_on_special_tokens,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
