"""Finished folders in the cache, and the progress of one fetch.

A folder is published whole, never half, and checked against a list of digests that is itself known by digest. Progress is a bar on a
terminal and plain lines elsewhere.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from mmjax.base import host
from mmjax.errors import InputError
from mmjax.fetch.archives import sha256

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
            with (folder / name).open("rb") as file:
                found = sha256(file)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found != digest:
            return f"{name} has changed"
    return None


def seal(folder: Path) -> str:
    """Lists the digests of a finished folder's files in it, sees that all has reached the disk, and returns the digest of the list."""
    lines = []
    for name in sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    ):
        with (folder / name).open("rb") as file:
            if name != README:
                lines.append(f"{sha256(file)}  {name}\n")
            os.fsync(file.fileno())
    text = "".join(lines).encode()
    with (folder / SUMS).open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(text).hexdigest()


@contextlib.contextmanager
def claimed(name: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Keeps other processes from fetching the same while the context lasts.

    Args:
        waiting: called if another process is at it; then its end is awaited.

    Raises InputError if the cache cannot be written.
    """
    cache = host.cache_dir()
    path = cache / f".{name}.lock"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        while True:
            lock = path.open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(lock, fcntl.LOCK_EX)
            # The process before may have removed the file that is locked now, and the next one made another.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    break
            lock.close()
    except OSError as error:
        raise InputError(f"The cache {cache} cannot be written: {error.strerror}.") from None
    with lock:  # freed by the kernel, however the process ends
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


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


def publish(made: Path, name: str) -> Path:
    """Gives a finished folder, in a draft, its final name. What had that name, damaged, goes with the draft."""
    final = place(name)
    if final.is_symlink() or final.exists():
        final.rename(made.with_name("replaced"))
    made.rename(final)
    return final


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


class FetchProgress:
    """Shows what is being done for one name."""

    def __init__(self, name: str, console: Console):
        self._name, self._console = name, console
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                _Amount(),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=console, transient=True)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def begin(self, text: str, total: int | None = None) -> None:
        """Something new begins, of `total` bytes if that is known."""
        if self._bar:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task(f"{self._name}: {text}", total=total)
        else:
            self.note(text)

    def advance(self, done: int) -> None:
        """So many bytes of it are done. A client may write more than the total, for itself; that is shown as all."""
        if self._bar:
            for task in self._bar.tasks:
                self._bar.update(
                    task.id, completed=done if task.total is None else min(done, task.total)
                )

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(f"{self._name}: {text}", markup=False, highlight=False, soft_wrap=True)


class _Amount(DownloadColumn):
    """Bytes done and in all, where that is known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)
