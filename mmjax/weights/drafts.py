"""Folders that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mmjax.errors import InputError

_TRIES = 100
_SETTLING = 0.3  # seconds


@contextlib.contextmanager
def published_at(directory: Path) -> Iterator[Path]:
    """A place beside `directory` for a folder that is yet to be made; when the context is left, it gets that name.

    If anything is raised in the context, nothing is left behind.

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
    """Removes a folder. Threads of an interrupted write may still be at work in it, and would make it anew: for a moment, a file stands
    in its place, at which they fail."""
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
    """Raises InputError if a folder cannot be made there without losing something."""
    if directory.is_symlink() or (directory.exists() and (not directory.is_dir() or any(directory.iterdir()))):
        raise InputError(f"{directory} exists already and is not empty; choose another folder, or remove it.")


def free_space(directory: Path) -> int:
    """Bytes that are free where a folder would be made."""
    existing = next(folder for folder in (directory.absolute(), *directory.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(existing).free
