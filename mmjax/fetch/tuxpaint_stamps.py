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

    def placed(member: tarfile.TarInfo, target: str) -> tarfile.TarInfo | None:
        """Where a file goes, or None if it is not wanted. A path that leads out of the folder is a TarError."""
        path = PurePosixPath(member.name)  # without a leading "./"
        if path == _COPYRIGHT:
            name = path.name
        elif path.is_relative_to(_STAMPS) and path.suffix in (".png", ".txt"):
            name = str(IMAGES / path.relative_to(_STAMPS))
        else:
            return None
        return tarfile.data_filter(member.replace(name=name), target)

    lines = []
    try:
        with archive.open("rb") as file:
            _to_data(file)
            with tarfile.open(fileobj=file, mode="r|xz") as tar:
                tar.extractall(folder, filter=placed)
        images = [path.relative_to(folder).as_posix() for path in folder.rglob("*.png")]
        for stem in sorted(image.removesuffix(".png") for image in images):
            image, caption = folder / f"{stem}.png", folder / f"{stem}.txt"
            content = caption.read_bytes().decode("utf-8") if caption.exists() else ""
            if text := content.partition("\n")[0].strip():
                record = {"image": f"{stem}.png", "text": text}
                lines.append(json.dumps(record, ensure_ascii=False) + "\n")
            else:
                image.unlink()
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise InputError(f"{archive.name} cannot be unpacked: {error}.") from None
    for caption in folder.rglob("*.txt"):
        caption.unlink()
    (folder / CAPTIONS).write_text("".join(lines), encoding="utf-8")


def _to_data(file: BinaryIO) -> None:
    """Goes to where the installed files of a .deb begin, a compressed tar file."""
    if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise tarfile.TarError("it is no Debian package")
    while len(header := file.read(_AR_HEADER)) == _AR_HEADER:
        if header.startswith(b"data.tar.xz"):
            return
        size = int(header[_AR_SIZE])
        file.seek(size + size % 2, io.SEEK_CUR)
    raise tarfile.TarError("it holds no data.tar.xz")
