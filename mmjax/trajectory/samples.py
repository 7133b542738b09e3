"""Samples of text from a file, as tokens."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmjax.base.files import open_regular
from mmjax.data.text.tokenizer import HuggingFaceTokenizer, Tokenizer
from mmjax.errors import InputError

MIN_TOKENS = 3
"""Tokens of a sample at least: two are then predicted, and shares of one would say nothing."""


@dataclass(frozen=True)
class Samples:
    """Samples that the model reads.

    Attributes:
        tokens: [N] int32 of each sample, in the order of the file.
        skipped: samples that were too short, of those before the last one that was taken.
        digest: SHA-256 over the tokens.
    """

    tokens: list[np.ndarray]
    skipped: int
    digest: str

    @property
    def total(self) -> int:
        """Tokens in all."""
        return sum(map(len, self.tokens))


def read_samples(
    path: Path, tokenizer: Tokenizer, *, count: int, longest: int, vocabulary: int
) -> Samples:
    """The first `count` samples of a file that have enough tokens, each cut to `longest` of them. A token that the tokenizer puts before
    every text is the first.

    Args:
        vocabulary: of the model.

    Raises:
        InputError: the file cannot be read, has no text or none that is long enough, or has tokens that the model does not know.
    """
    begins = tokenizer.begins if isinstance(tokenizer, HuggingFaceTokenizer) else ""
    first = [tokenizer.special(begins)] if begins else []
    taken: list[np.ndarray] = []
    skipped = 0
    for text in read_texts(path):
        tokens = np.array((first + tokenizer.encode(text))[:longest], np.int32)
        if len(tokens) < MIN_TOKENS:
            skipped += 1
            continue
        if (largest := int(tokens.max())) >= vocabulary:
            raise InputError(
                f"The tokenizer is not that of the model: it gives token {largest}, and the model knows {vocabulary}."
            )
        taken.append(tokens)
        if len(taken) == count:
            break
    if not taken and not skipped:
        raise InputError(f"There is no text in {path}.")
    if not taken:
        form = (
            'Each line is one: {"text": ...}.'
            if path.suffix == ".jsonl"
            else "Samples are separated by blank lines."
        )
        raise InputError(
            f"No sample of {path} has {MIN_TOKENS} tokens, so that there is nothing to predict. {form}"
        )
    digest = hashlib.sha256(b"".join(tokens.tobytes() + b"|" for tokens in taken)).hexdigest()
    return Samples(taken, skipped, digest)


def read_texts(path: Path) -> Iterator[str]:
    """Samples of a file: texts between blank lines, or in a file that ends in .jsonl, "text" of the object in each line.

    Raises InputError if the file cannot be read.
    """
    descriptor, _ = open_regular(path)
    with open(descriptor, encoding="utf-8-sig") as file:
        try:
            if path.suffix == ".jsonl":
                for number, line in enumerate(file, 1):
                    if not line.strip():
                        continue
                    try:
                        record = json.loads(line)
                    except (ValueError, RecursionError):
                        record = None
                    text = record.get("text") if isinstance(record, dict) else None
                    if not isinstance(text, str):
                        raise InputError(f'{path}, line {number}, is not an object with a "text".')
                    yield text
            else:
                for blank, lines in itertools.groupby(file, key=lambda line: not line.strip()):
                    if not blank:
                        yield "".join(lines).rstrip("\r\n")
        except UnicodeDecodeError:
            raise InputError(f"{path} is not UTF-8.") from None
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from None
