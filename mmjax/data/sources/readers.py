"""Files of many JSON records, read one record at a time."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.examples import SampleError
from mmjax.errors import InputError

_SPACE = re.compile(r"[ \t\r\n]*")
_BYTE_ORDER_MARK = "\xef\xbb\xbf"  # as Latin-1


class RecordFile:
    """The JSON records of a file by index. Memory holds their places only; a damaged record spoils itself and no other.

    Attributes:
        path: the file.
        spans: [n, 2] int64, first byte of each record and the byte after it.
    """

    def __init__(self, path: Path, spans: list[tuple[int, int]]):
        """Raises InputError if there are no records."""
        if not spans:
            raise InputError(f"The data file {path} holds no records.")
        self.path = path
        self.spans = np.array(spans, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`. Raises SampleError ("bad UTF-8", "bad JSON") when it is not a JSON object."""
        start, end = map(int, self.spans[index])
        with open(self.path, "rb") as file:
            file.seek(start)
            data = file.read(end - start)
        where = f"{self.path}, byte {start}"
        try:
            record = json.loads(data.decode("utf-8"))
            # An escaped half of a surrogate pair is no text either.
            if b"\\ud" in data or b"\\uD" in data:
                json.dumps(record, ensure_ascii=False).encode("utf-8")
        except UnicodeError as error:
            raise SampleError("bad UTF-8", f"{where}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise SampleError("bad JSON", f"{where}: {error}") from None
        if not isinstance(record, dict):
            raise SampleError("bad JSON", f"{where}: not an object")
        return record


def open_lines(path: str | os.PathLike) -> RecordFile:
    """A file with one JSON object a line; blank lines are skipped. Raises InputError if it cannot be read or is empty."""
    path = Path(path)
    spans, offset = [], 0
    try:
        with open(path, "rb") as file:
            for line in file:
                if line.strip():
                    spans.append((offset, offset + len(line)))
                offset += len(line)
    except OSError as error:
        raise InputError(f"The data file {path} cannot be read: {error.strerror}.") from None
    return RecordFile(path, spans)


def open_list(path: str | os.PathLike) -> RecordFile:
    """A file that is one JSON list of objects. Raises InputError if it cannot be read, is empty, or is no JSON list."""
    path = Path(path)
    try:
        # As Latin-1 every byte is a character: positions are byte offsets, and bad UTF-8 is met when its record is read.
        text = path.read_bytes().decode("latin-1")
    except OSError as error:
        raise InputError(f"The data file {path} cannot be read: {error.strerror}.") from None
    return RecordFile(path, list(_list_items(text, path)))


def check_folder(path: str | os.PathLike, field: str) -> Path:
    """The folder as a path. Raises InputError if there is none."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{field}: there is no folder {str(path)!r}.")
    return folder


def _list_items(text: str, path: Path) -> Iterator[tuple[int, int]]:
    """Yields where each item of a JSON list starts and ends."""

    def skip_space(at: int) -> int:
        return _SPACE.match(text, at).end()  # type: ignore[union-attr]

    decoder = json.JSONDecoder()
    at = skip_space(len(_BYTE_ORDER_MARK) if text.startswith(_BYTE_ORDER_MARK) else 0)
    if text[at : at + 1] != "[":
        raise InputError(
            f"{path} does not hold a JSON list; a file with one object a line is for the jsonl source."
        )
    at = skip_space(at + 1)
    if text[at : at + 1] == "]":
        return
    while True:
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not valid JSON: {error}.") from None
        yield at, end
        after = skip_space(end)
        if text[after : after + 1] == "]":
            return
        if text[after : after + 1] != ",":
            raise InputError(
                f"{path} is not valid JSON: no comma or closing bracket after the item that ends at byte {end}."
            )
        at = skip_space(after + 1)
