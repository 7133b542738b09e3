"""What files hold, told cheaply: that one has changed is noticed, and one that was copied or touched is the same."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmjax.base.files import open_regular
from mmjax.errors import InputError

GONE = "gone"
WHOLE = 64 * 1024 * 1024
_PIECE, _PIECES, _THREADS = 64 * 1024, 64, 8


def fingerprint(path: Path, whole: int = WHOLE) -> str:
    """Bytes and digest of a file, "1234 6d1f..."; GONE if there is none that can be read.

    The digest is of all of it up to `whole` bytes. Of a longer file it is of at most 64 pieces of 64 kB: the first, the last, and evenly
    spaced ones between, so that a change within it which keeps its size may be missed. When it was written is no part of it.
    """
    try:
        descriptor, size = open_regular(path)
    except InputError:
        return GONE
    digest = hashlib.blake2b(digest_size=16)
    with open(descriptor, "rb") as file:
        try:
            if size <= whole:
                hashlib.file_digest(file, lambda: digest)
            else:
                pieces = max(2, min(_PIECES, whole // _PIECE))
                for number in range(pieces):
                    file.seek((size - _PIECE) * number // (pieces - 1))
                    digest.update(file.read(_PIECE))
        except OSError:
            return GONE
    return f"{size} {digest.hexdigest()}"


def fingerprints(paths: Iterable[Path], whole: int = WHOLE) -> dict[str, str]:
    """The fingerprint of each file, by its path below the folder that they have in common, so that a copy of it all gives the same."""
    absolute = [os.path.abspath(path) for path in dict.fromkeys(paths)]
    if not absolute:
        return {}
    root = os.path.commonpath([os.path.dirname(path) for path in absolute])
    found: dict[str, str] = {}

    def read(some: list[str]) -> None:
        found.update({path: fingerprint(Path(path), whole) for path in some})

    # Threads help where a disk answers late. Each has its share: handing a small file over costs more than reading it.
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(read, (absolute[first::_THREADS] for first in range(_THREADS))))
    return {os.path.relpath(path, root): found[path] for path in absolute}


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What is not as it was, a line for each file, in the order of their names."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name, GONE), now.get(name, GONE)
        if old == new:
            continue
        sizes = [text.split()[0] for text in (old, new)]
        if new == GONE:
            found.append(f"{name} is gone")
        elif old == GONE:
            found.append(f"{name} is new")
        elif sizes[0] != sizes[1]:
            found.append(f"{name} has {int(sizes[1]):,} bytes, not {int(sizes[0]):,}")
        else:
            found.append(f"{name} has other contents of the same size")
    return found
