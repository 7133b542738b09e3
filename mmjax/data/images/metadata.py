"""PNG and JPEG files without their metadata: damaged or endless comments, profiles and the like must not cost an image its pixels."""

import zlib
from typing import BinaryIO

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_XMP = b"XML:com.adobe.xmp\0\0"
"""How an uncompressed chunk with XMP begins, which may say which side is up."""
_XMP_BYTES = 1024 * 1024

_SCAN, _COMMENT, _FILLER = 0xDA, 0xFE, 0xFF
_JFIF, _EXIF, _ADOBE = 0xE0, 0xE1, 0xEE
_APPLICATION = range(0xE0, 0xF0)
_LEAST = {_JFIF: 14, _EXIF: 6, _ADOBE: 12}
"""Bytes of the segments that say how colours are stored and which side is up; a shorter one says nothing."""


def without_metadata(file: BinaryIO) -> bytes | None:
    """What the pixels of an image file need, and which side is up; None if it is neither PNG nor JPEG, or has nothing beside that."""
    magic = file.read(len(_PNG))
    if magic != _PNG and not magic.startswith(_JPEG):
        return None
    data = magic + file.read()
    kept = _png(data) if magic == _PNG else _jpeg(data)
    return kept if len(kept) < len(data) else None


def _png(data: bytes) -> bytes:
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        chunk = data[at : at + 12 + length]
        at += len(chunk)
        sound = int.from_bytes(chunk[-4:]) == zlib.crc32(kind + content)
        upright = kind == b"eXIf" or (
            kind == b"iTXt" and content.startswith(_XMP) and length <= _XMP_BYTES
        )
        # The first letter of what no decoder may pass over is a capital.
        if kind[:1].isupper() or kind == b"tRNS" or (sound and upright):
            kept.append(chunk)
    return b"".join(kept)


def _jpeg(data: bytes) -> bytes:
    kept, at = [_JPEG], len(_JPEG)
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _SCAN:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        segment = data[at : at + (1 if marker == _FILLER else 2 + length)]
        at += len(segment)
        metadata = marker in _APPLICATION or marker == _COMMENT
        if not metadata or length - 2 >= _LEAST.get(marker, length):
            kept.append(segment)
    return b"".join([*kept, data[at:]])
