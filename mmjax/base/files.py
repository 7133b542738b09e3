"""Files and folders as a whole: regular files read up to a limit, and folders that appear under their name when they are complete."""

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmjax.errors import InputError

SETTINGS = 1024 * 1024
"""Bytes of a file of settings; published ones have a few thousand."""
# What stands in the place of a file whose content was not fetched: the beginning of all such, what they belong to, and what fetches it.
_POINTERS = (
    (re.compile(rb"version https://(git-lfs|hawser)\.github\.com/"), "Git LFS", "git lfs pull"),
    (re.compile(rb"([^\n\0]*/)?annex/objects/[^\n\0/]"), "git-annex", "git annex get"),
    (re.compile(rb"# xet version "), "Xet", "git xet checkout"),
)
_POINTER = 4096  # bytes that none is longer than
OF_THE_DISK = frozenset(
    (
        *(errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENAMETOOLONG),
        *(errno.ENOLCK, errno.ENOSPC, errno.EPERM, errno.EROFS, errno.ESTALE),
    )
)
"""Errors of files that say nothing of the program: the disk is full or read-only, the name too long, and the like."""
_DRAFT = re.compile(r"\.(?:(\d+)\..+|.+\.(\d+))")  # .PROCESS.NAME or .NAME.PROCESS
_TRIES = 100
_SETTLING = 0.3  # seconds


def open_regular(path: Path) -> tuple[int, int]:
    """The descriptor of a file that is open for reading, and its size. Raises InputError if there is none, or if it is a folder, a pipe,
    which would block for ever, a device, which has no end, or a pointer to a file that was not fetched (`pointer_to`)."""
    try:
        # Without the last flag, opening a pipe would block.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and (named := pointer_to(path)):
            raise InputError(f"{path} {named}.") from None
        raise InputError(f"{path} cannot be opened: {error.strerror}.") from None
    found = os.fstat(descriptor)
    problem = None if stat.S_ISREG(found.st_mode) else "is not a file"
    if problem is None and found.st_size <= _POINTER:
        problem = pointer_to(path, os.pread(descriptor, _POINTER, 0))
    if problem is not None:
        os.close(descriptor)
        raise InputError(f"{path} {problem}.")
    return descriptor, found.st_size


def pointer_to(path: Path, content: bytes | None = None) -> str | None:
    """What is said of a file that only names the one that is meant, because it was not fetched: of Git LFS, git-annex or Xet; None for any
    other.

    Args:
        content: of the file; None: it cannot be opened, which is how a link of git-annex shows that it was not fetched.
    """
    if content is None:
        content = os.fsencode(os.readlink(path)) if path.is_symlink() else b""
    for beginning, name, command in _POINTERS:
        if len(content) <= _POINTER and beginning.match(content):
            return f"is a pointer of {name}, not the file itself. Fetch it with `{command}`"
    return None


def read_regular(path: Path, limit: int = SETTINGS, what: str = "config of a model") -> bytes:
    """All bytes of a file. Raises InputError if it is none, cannot be read, or is longer than `limit` bytes and so no `what`."""
    descriptor, size = open_regular(path)
    with open(descriptor, "rb") as file:
        if size > limit:
            raise InputError(f"{path} has {size} bytes; that is no {what}.")
        try:
            return file.read(limit)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def read_object(
    path: Path, limit: int = SETTINGS, what: str = "config of a model"
) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError as `read_regular`, and if there is something else in it."""
    data = read_regular(path, limit, what)
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a JSON object.")
    return content


@contextlib.contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """The path of a folder that is yet to be made, beside `directory`; when the context is left, it is renamed to `directory`.

    If anything is raised in the context, everything that was made is removed again.

    Raises:
        InputError: the directory has files already, or it cannot be made or written.
    """
    check_free(directory)
    parent = directory.absolute().parent
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    folder = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=parent))
        yield folder / "draft"
        if directory.exists():
            directory.rmdir()
        os.replace(folder / "draft", directory)
        folder.rmdir()
    except BaseException as error:
        _remove(folder, interrupted=not isinstance(error, Exception))
        with contextlib.suppress(OSError):
            for empty in made:
                empty.rmdir()
        if isinstance(error, OSError):
            raise InputError(f"{directory} cannot be written: {error.strerror or error}.") from None
        raise


def _remove(folder: Path | None, *, interrupted: bool) -> None:
    """Removes a folder. Threads of an interrupted write may still be at work in it and would make it anew, so for a moment a file stands in
    its place, at which they fail."""
    if folder is None:
        return
    for _ in range(_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.touch(exist_ok=False)
        except FileExistsError:
            continue
        break
    if interrupted:
        time.sleep(_SETTLING)
    with contextlib.suppress(OSError):
        folder.unlink()


def check_free(directory: Path) -> None:
    """Raises InputError if a folder cannot be made there, or not without losing something."""
    check_name(directory)
    try:
        free = not directory.is_symlink() and (
            not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))
        )
    except OSError as error:  # the name is too long, or a folder above cannot be entered
        raise InputError(f"{directory} cannot be written: {error.strerror}.") from None
    if not free:
        raise InputError(
            f"{directory} exists already and is not empty; choose another folder, or remove it."
        )


def check_name(path: Path) -> None:
    """Raises InputError if the whole path, with the folder that it is relative to, is not UTF-8: not all libraries can write there."""
    if not_utf8(str(path.absolute())):
        raise InputError(f"The path {str(path.absolute())!r} is not UTF-8: choose another.")


def not_utf8(text: str) -> bool:
    """Whether the bytes of a name were no UTF-8, which Python keeps as surrogates."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def free_space(directory: Path) -> int:
    """Bytes that are free where a folder would be made."""
    existing = next(
        folder
        for folder in (directory.absolute(), *directory.absolute().parents)
        if folder.is_dir()
    )
    return shutil.disk_usage(existing).free


def is_draft(path: Path) -> bool:
    """Whether the name is one of those, with the number of the writing process, under which files are written before they get their own."""
    return _DRAFT.fullmatch(path.name) is not None and path.is_file()


def remove_drafts(folder: Path) -> None:
    """Removes the drafts that killed processes have left in a folder; those of a process that lives stay."""
    for path in filter(is_draft, folder.iterdir()):
        found = _DRAFT.fullmatch(path.name)
        assert found is not None
        try:
            os.kill(int(found[1] or found[2]), 0)
        except (ProcessLookupError, OverflowError):
            path.unlink(missing_ok=True)
        except PermissionError:
            pass  # it lives, and is another user's
