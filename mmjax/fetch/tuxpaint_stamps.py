"""Images with captions written by hand: the stamps of Tux Paint, from its Debian package."""

import io
import json
import tarfile
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from mmjax.errors import InputError

CAPTIONS, IMAGES = "captions.jsonl", "images"

_STAMPS = PurePosixPath("usr/share/tuxpaint/stamps")
_COPYRIGHT = PurePosixPath("usr/share/doc/tuxpaint-stamps-default/copyright")

# A .deb file is an `ar` archive (man 5 deb): a magic, then members with headers of 60 bytes, each beginning at an even offset.
_AR_MAGIC, _AR_HEADER, _AR_SIZE = b"!<arch>\n", 60, slice(48, 58)


def unpack(archive: Path, folder: Path) -> None:
    """Writes every PNG stamp that has a caption, as it is, and captions.jsonl, a line {"image", "text"} for each, sorted by path.

    "image" is relative to the folder: images/animals/mammals/zebu.png, say. Of a caption's translations none is taken; English comes first.
    """
    captions: dict[str, str] = {}
    written: list[str] = []
    try:
        with archive.open("rb") as file, tarfile.open(fileobj=_data(file), mode="r|xz") as tar:
            for member in tar:
                path = PurePosixPath(member.name)  # without a leading "./"
                if ".." in path.parts or path.is_absolute():
                    raise tarfile.TarError(f"it has a file {member.name!r}")
                stamp = path.suffix in (".png", ".txt") and path.is_relative_to(_STAMPS)
                if not member.isfile() or not (stamp or path == _COPYRIGHT):
                    continue
                content = tar.extractfile(member)
                assert content is not None
                if path == _COPYRIGHT:
                    (folder / "copyright").write_bytes(content.read())
                    continue
                # Where a stamp goes, without its suffix: the same for image and caption.
                stem = str(IMAGES / path.relative_to(_STAMPS).with_suffix(""))
                if path.suffix == ".txt":
                    captions[stem] = content.read().decode("utf-8").partition("\n")[0].strip()
                else:
                    image = folder / f"{stem}.png"
                    image.parent.mkdir(parents=True, exist_ok=True)
                    image.write_bytes(content.read())
                    written.append(stem)
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise InputError(f"{archive.name} cannot be unpacked: {error}.") from None
    with (folder / CAPTIONS).open("w", encoding="utf-8") as lines:
        for stem in sorted(written):
            if captions.get(stem):
                record = {"image": f"{stem}.png", "text": captions[stem]}
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
            else:
                (folder / f"{stem}.png").unlink()


def _data(file: BinaryIO) -> BinaryIO:
    """The installed files of a .deb, a compressed tar file, as a stream of its own."""
    if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise tarfile.TarError("it is no Debian package")
    while len(header := file.read(_AR_HEADER)) == _AR_HEADER:
        size = int(header[_AR_SIZE])
        if header.startswith(b"data.tar.xz"):
            return io.BufferedReader(_Window(file, size))
        file.seek(size + size % 2, io.SEEK_CUR)
    raise tarfile.TarError("it holds no data.tar.xz")


class _Window(io.RawIOBase):
    """The next `size` bytes of a file, and then its end."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        chunk = self._file.read(min(len(buffer), self._left))
        self._left -= len(chunk)
        buffer[: len(chunk)] = chunk
        return len(chunk)
