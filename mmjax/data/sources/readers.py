"""Files of many JSON records, read one record at a time; and folders of images, which no path in a record leads out of."""

import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmjax.base.files import open_regular
from mmjax.data.examples import Image, SampleError
from mmjax.errors import InputError

MAX_RECORD_BYTES = 8 * 1024 * 1024
"""Longer records are unusable: a conversation of a million tokens has half as many bytes, and reading ten times as many takes a minute and
gigabytes."""

_SPACE = re.compile(r"[ \t\r\n]*")
_BYTE_ORDER_MARK = "\ufeff"
_PIECE = 1024 * 1024  # characters of a file that are looked at together

_MARKED = (  # the longer one first: one begins with the other
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
_PACKED = {
    b"\x1f\x8b": "a gzip file; unpack it first, such as with gunzip",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it first, such as with unzstd",
    b"BZh": "a bzip2 file; unpack it first, such as with bunzip2",
    b"\xfd7zXZ\x00": "an xz file; unpack it first, such as with unxz",
    b"PK\x03\x04": "a zip file; unpack it first, such as with unzip",
    b"PAR1": "a Parquet file; write it as JSON lines first, such as with pandas (to_json with orient='records', lines=True)",
}
"""Files that hold no text, by how they begin."""


class RecordFile:
    """The JSON records of a file by index. Memory holds their places only; a damaged record spoils itself and no other.

    Attributes:
        path: the file.
        spans: [n, 2] int64, first byte of each record and the byte after it.
        encoding: of its text.
    """

    def __init__(self, path: Path, spans: list[tuple[int, int]], encoding: str = "utf-8"):
        """Raises InputError if there are no records."""
        if not spans:
            raise InputError(f"The data file {path} holds no records.")
        self.path = path
        self.spans = np.array(spans, np.int64).reshape(-1, 2)
        self.encoding = encoding

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`.

        Raises:
            SampleError: "bad UTF-8" (or another encoding) or "bad JSON" when it is not a JSON object, "oversized record" when it has more
                than MAX_RECORD_BYTES.
            InputError: the file cannot be read any more.
        """
        start, end = map(int, self.spans[index])
        where = f"{self.path}, record {index + 1}"
        if end - start > MAX_RECORD_BYTES:
            raise SampleError("oversized record", f"{where}: {end - start:,} bytes")
        with _open(self.path) as file:
            file.seek(start)
            data = file.read(end - start)
        try:
            text = data.decode(self.encoding)
        except UnicodeError as error:
            name = re.sub("-[lb]e$", "", self.encoding).upper()
            convert = f"if the file is not in {name}, convert it, such as with `iconv -f WINDOWS-1252 -t UTF-8 {self.path.name} > NEW`"
            raise SampleError(f"bad {name}", f"{where}: {error}; {convert}") from None
        try:
            # One in the midst of a file comes from files that were put behind each other.
            record = json.loads(text.lstrip(" \t\r\n").removeprefix(_BYTE_ORDER_MARK))
            # An escaped half of a surrogate pair is no text either.
            if "\\ud" in text or "\\uD" in text:
                json.dumps(record, ensure_ascii=False).encode("utf-8")
        except UnicodeError as error:
            raise SampleError("bad UTF-8", f"{where}: {error}") from None
        except json.JSONDecodeError as error:  # whose line is one of the record
            reason = f"{error.msg} at character {error.pos + 1}"
            raise SampleError("bad JSON", f"{where}: {reason}") from None
        except (ValueError, RecursionError) as error:
            raise SampleError("bad JSON", f"{where}: {error}") from None
        if not isinstance(record, dict):
            raise SampleError("bad JSON", f"{where}: not an object")
        return record


def open_records(path: str | os.PathLike) -> RecordFile:
    """A file with one JSON object a line, or one that is a JSON list of objects: what it begins with says which.

    Raises InputError as `open_lines` and `open_list`.
    """
    with _open(Path(path)) as file:
        encoding = _encoding(file, Path(path))
        begins = file.read(_PIECE).decode(encoding, "replace").lstrip(_BYTE_ORDER_MARK + " \t\r\n")
    return open_list(path) if begins.startswith("[") else open_lines(path)


def open_lines(path: str | os.PathLike) -> RecordFile:
    """A file with one JSON object a line; blank lines are skipped. Raises InputError if it cannot be read, is no text, or is empty."""
    path = Path(path)
    spans = []
    with _open(path) as file:
        encoding = _encoding(file, path)
        # As Latin-1 every byte is a character, and bad UTF-8 is met when its record is read.
        wide = encoding != "utf-8"
        start = offset = file.tell()
        # Lines end with a line feed, after a carriage return or not; only in a file without any, with a carriage return alone.
        begins = file.read(_PIECE)
        newline = "" if b"\r" in begins and b"\n" not in begins else "\n"
        file.seek(offset)
        text = io.TextIOWrapper(file, encoding if wide else "latin-1", "replace", newline)
        blank = True
        while piece := text.readline(_PIECE):
            offset += len(piece.encode(encoding)) if wide else len(piece)
            blank = blank and not piece.strip(_BLANK)
            if piece.endswith(("\n", "\r") if newline == "" else "\n"):
                if not blank:
                    spans.append((start, offset))
                start, blank = offset, True
        if not blank:
            spans.append((start, offset))
    return RecordFile(path, spans, encoding)


_BLANK = " \t\r\n" + _BYTE_ORDER_MARK + _BYTE_ORDER_MARK.encode().decode("latin-1")


def open_list(path: str | os.PathLike) -> RecordFile:
    """A file that is one JSON list of objects. Raises InputError if it cannot be read, is empty, or is no JSON list."""
    path = Path(path)
    with _open(path) as file:
        encoding = _encoding(file, path)
        offset = file.tell()
        data = file.read()
    if encoding == "utf-8":
        # As Latin-1 every byte is a character: positions are byte offsets, and bad UTF-8 is met when its record is read.
        text = data.decode("latin-1")
        return RecordFile(path, [(offset + a, offset + b) for a, b in _list_items(text, path)])
    text = data.decode(encoding, "replace")
    spans, at = [], 0
    for start, end in _list_items(text, path):
        begin = offset + len(text[at:start].encode(encoding))
        offset, at = begin + len(text[start:end].encode(encoding)), end
        spans.append((begin, offset))
    return RecordFile(path, spans, encoding)


def check_folder(path: str | os.PathLike, field: str) -> Path:
    """The folder as a path. Raises InputError if there is none."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{field}: there is no folder {str(path)!r}.")
    return folder


class ImageFolder:
    """Where the images of a source lie. No path in a record leads elsewhere, be it absolute, with `..`, or through a link."""

    def __init__(self, path: str | os.PathLike, others: Sequence[str] = ()):
        """
        Args:
            path: what paths are relative to.
            others: more folders in which images may lie.

        Raises:
            InputError: one of them is no folder.
        """
        self.path = check_folder(path, "image_dir")
        folders = [self.path, *(check_folder(other, "image_roots") for other in others)]
        roots = [root for folder in folders for root in (folder, *_stores(folder))]
        self._roots = tuple(os.path.join(os.path.realpath(root), "") for root in roots)

    def image(self, path: str) -> Image:
        """The image of that path. Whether it exists is not looked at. Raises SampleError if it would lie outside."""
        if not path or "\0" in path:
            raise SampleError("bad image", f"{path[:80]!r} is no path")
        found = self.path / path
        real = os.path.realpath(found)
        if not real.startswith(self._roots):
            raise SampleError(
                "image outside image_dir",
                f"{str(found)[:500]} is {real[:500]}; the setting image_roots of the source names other folders in which images may lie",
            )
        return Image(found)


def _stores(folder: Path) -> Iterator[Path]:
    """Where the cache of the Hugging Face Hub keeps the files of a folder in it: there they are links."""
    for above in (folder.absolute(), *folder.absolute().parents):
        if above.name == "snapshots" and (above.parent / "blobs").is_dir():
            yield above.parent / "blobs"


def _open(path: Path) -> BinaryIO:
    """Opens a data file. Raises InputError if there is none, or if it is a folder, or a pipe or device, which may have no end."""
    try:
        descriptor, _ = open_regular(path)
    except InputError as error:
        raise InputError(f"The data file {path} cannot be read: {error}") from None
    return open(descriptor, "rb")


def _encoding(file: BinaryIO, path: Path) -> str:
    """How the text of a file is encoded, told by its first bytes; the file then stands behind its byte order mark.

    Raises InputError if it holds no text.
    """
    begins = file.read(max(map(len, _PACKED)))
    for magic, what in _PACKED.items():
        if begins.startswith(magic):
            raise InputError(f"The data file {path} cannot be read: it is {what}.")
    # UTF-8 unless it is marked, or has zero bytes where the first sign of JSON has them in another encoding.
    found, mark = json.detect_encoding(begins[:4]).removesuffix("-sig"), b""
    for known, encoding in _MARKED:
        if begins.startswith(known):
            found, mark = encoding, known
            break
    file.seek(len(mark))
    return found


def _list_items(text: str, path: Path) -> Iterator[tuple[int, int]]:
    """Yields where each item of a JSON list starts and ends."""

    def skip_space(at: int) -> int:
        return _SPACE.match(text, at).end()  # type: ignore[union-attr]

    decoder = json.JSONDecoder()
    marks = (_BYTE_ORDER_MARK, _BYTE_ORDER_MARK.encode().decode("latin-1"))
    at = skip_space(next((len(mark) for mark in marks if text.startswith(mark)), 0))
    if text[at : at + 1] != "[":
        raise InputError(
            f"{path} does not hold a JSON list; sources that read one object a line want each of them on one line."
        )

    def check_end(at: int) -> None:
        if skip_space(at) < len(text):
            raise InputError(
                f"{path} is not one JSON list: something follows the bracket that ends at byte {at}."
            )

    at = skip_space(at + 1)
    if text[at : at + 1] == "]":
        return check_end(at + 1)
    while True:
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not valid JSON: {error}.") from None
        yield at, end
        after = skip_space(end)
        if text[after : after + 1] == "]":
            return check_end(after + 1)
        if text[after : after + 1] != ",":
            raise InputError(
                f"{path} is not valid JSON: no comma or closing bracket after the item that ends at byte {end}."
            )
        at = skip_space(after + 1)
