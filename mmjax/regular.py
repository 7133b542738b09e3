"""Small files as a whole: regular ones only, and no more of them than there can be."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from mmjax.errors import InputError

SETTINGS = 1024 * 1024
"""Bytes of a file of settings; published ones have a few thousand."""


def open_regular(path: Path) -> tuple[int, int]:
    """The descriptor of a file that is open for reading, and its size. Raises InputError if there is none, or if it is a folder, a pipe,
    which would block for ever, or a device, which has no end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # without the last, opening a pipe would block
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}.") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is not a file.")
    return descriptor, found.st_size


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


def read_object(path: Path, limit: int = SETTINGS, what: str = "config of a model") -> dict[str, Any]:
    """The JSON object in a file. Raises InputError as `read_regular`, and if there is something else in it."""
    data = read_regular(path, limit, what)
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a JSON object.")
    return content
