"""Finished folders in the cache, and the progress of one fetch.

A folder is published whole, never half, and checked against a list of digests that is itself known by digest.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import filelock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from mmjax.base import host
from mmjax.errors import InputError

SUMS = "SHA256SUMS"  # as `sha256sum --check` reads it
README = "README.md"  # for people; not in the list, so that its wording can change


def place(name: str) -> Path:
    """Where the folder of this name is, or will be."""
    return host.cache_dir() / name


def is_there(folder: Path, expected: str) -> bool:
    """Whether a finished folder is there, with every file in its place. The contents are not read; `damage` does that."""
    listed = _listed(folder, expected)
    return listed is not None and all((folder / name).is_file() for name in listed)


def damage(folder: Path, expected: str) -> str | None:
    """What is wrong with a finished folder, or None if every byte is as it was made.

    Args:
        expected: the digest of its list of digests. Files that are not in the list do not matter.
    """
    if not folder.exists():
        return "it is not there"
    listed = _listed(folder, expected)
    if listed is None:
        return f"its {SUMS} is missing or not the expected one"
    for name, digest in listed.items():
        try:
            if sha256(folder / name) != digest:
                return f"{name} has changed"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def seal(folder: Path) -> str:
    """Lists the digests of a finished folder's files in it, sees that all has reached the disk, and returns the digest of the list."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    names = sorted(name for name, path in files.items() if path.is_file() and name != README)
    text = "".join(f"{sha256(files[name])}  {name}\n" for name in names).encode()
    (folder / SUMS).write_bytes(text)
    for path in (folder / name for name in (*names, SUMS)):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return hashlib.sha256(text).hexdigest()


def sha256(path: Path) -> str:
    """The digest of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(folder: Path, expected: str) -> dict[str, str] | None:
    """Digests by file name, or None if there is no list, or not the expected one."""
    try:
        text = (folder / SUMS).read_bytes()
    except OSError:
        return None
    if hashlib.sha256(text).hexdigest() != expected:
        return None
    lines = (line.split("  ", 1) for line in text.decode().splitlines())
    return {name: digest for digest, name in lines}


@contextlib.contextmanager
def claimed(name: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Keeps other processes from fetching the same while the context lasts.

    Args:
        waiting: called if another process is at it; then its end is awaited.

    Raises InputError if the cache cannot be written.
    """
    cache = host.cache_dir()
    path = cache / f".{name}.lock"
    lock = filelock.FileLock(path)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            waiting()
            lock.acquire()
    except OSError as error:
        raise InputError(f"The cache {cache} cannot be written: {error.strerror}.") from None
    try:
        yield
    finally:
        path.unlink(
            missing_ok=True
        )  # still locked: whoever waits for this file finds that it has gone, and makes another
        lock.release()


@contextlib.contextmanager
def draft(name: str) -> Iterator[Path]:
    """An empty folder beside the final one, removed at the end. Only within `claimed`: what a killed process left in it is removed, too."""
    path = host.cache_dir() / f".{name}.part"
    try:
        if path.exists():
            shutil.rmtree(path)
        path.mkdir()
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def publish(made: Path, name: str) -> None:
    """Gives a finished folder, in a draft, its final name. What had that name, damaged, goes with the draft."""
    final = place(name)
    if final.is_symlink() or final.exists():
        final.rename(made.with_name("replaced"))
    made.rename(final)


class FetchProgress:
    """Shows what is being done for one name: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, name: str, console: Console):
        self._name, self._console = name, console
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeElapsedColumn(),
        )
        self._bar = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def begin(self, text: str, total: int | None = None) -> None:
        """Something new begins, of `total` bytes if that is known."""
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._bar.add_task(f"{self._name}: {text}", total=total)
        if self._bar.disable:
            self.note(text)

    def advance(self, done: int) -> None:
        """So many bytes of it are done. A client may write more than the total, for itself; that is shown as all."""
        for task in self._bar.tasks:
            total = done if task.total is None else task.total
            self._bar.update(task.id, completed=min(done, total))

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(f"{self._name}: {text}", markup=False, highlight=False, soft_wrap=True)
