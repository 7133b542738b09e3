"""The record that is published with the arrays of a checkpoint: what they are, a digest of each, and where training goes on.

The record carries a digest of itself, so that a damaged data position is noticed like a damaged array is.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from mmjax.typing import Array

FILE = "record.json"


class DamagedError(Exception):
    """A checkpoint is not what was saved."""


class Record:
    """One item of a checkpoint, written by Orbax in the background and published together with the arrays.

    Attributes:
        row: index of the first data row that the state has not seen.
        metadata: what the loop needs to go on, JSON-like.
        arrays: by path, {"dtype", "shape", "digest"}.
    """

    def __init__(self, row: int = 0, metadata: Mapping[str, Any] | None = None, state: Mapping[str, Array] | None = None):
        """state: the arrays to describe, by path; without it the record is to be loaded."""
        self.row, self.metadata = row, dict(metadata or {})
        self.arrays: dict[str, dict[str, Any]] = {}
        self._state = state
        self._text = ""

    async def save(self, directory: ocp.path.PathAwaitingCreation) -> Awaitable[None]:
        """Copies the arrays to the host before it returns: the next step consumes them. The rest happens in the background."""
        assert self._state is not None
        for value in self._state.values():
            value.copy_to_host_async()
        host = {path: np.asarray(value) for path, value in self._state.items()}
        self._state = None
        return self._write(directory, host)

    async def _write(self, directory: ocp.path.PathAwaitingCreation, host: dict[str, np.ndarray]) -> None:
        self.arrays = await asyncio.to_thread(lambda: {path: describe(value) for path, value in host.items()})
        content = {"row": self.row, "metadata": self.metadata, "arrays": self.arrays}
        folder = await directory.await_creation()
        (folder / FILE).write_text(json.dumps({"content": content, "digest": _digest_json(content)}))

    async def load(self, directory: ocp.path.Path) -> Awaitable[None]:
        """Reads the text of the record; `parse` understands it."""

        async def read() -> None:
            self._text = (directory / FILE).read_text()

        return read()

    def parse(self) -> None:
        """Understands and checks what was loaded. Raises DamagedError."""
        try:
            record = json.loads(self._text)
            content = record["content"]
            intact = record["digest"] == _digest_json(content)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"its {FILE} cannot be read ({error!r})") from None
        if not intact:
            raise DamagedError(f"its {FILE} is not what was saved")
        self.row, self.metadata, self.arrays = content["row"], content["metadata"], content["arrays"]

    def verify(self, loaded: Mapping[str, Any]) -> None:
        """Holds arrays, by path, against their digests. Raises DamagedError naming those that differ or were not read at all."""
        absent = [path for path, value in loaded.items() if not isinstance(value, jax.Array)]
        if absent:
            raise DamagedError(f"these arrays were not read: {', '.join(absent[:5])}")
        with ThreadPoolExecutor() as threads:
            found = dict(zip(loaded, threads.map(describe, loaded.values()), strict=True))
        wrong = [path for path in found if found[path] != self.arrays[path]]
        if wrong:
            raise DamagedError(f"the content of {len(wrong)} of its arrays is not what was saved: {', '.join(wrong[:5])}")


def describe(value: Array | np.ndarray) -> dict[str, Any]:
    """Type, shape and digest of an array."""
    array = np.asarray(value)
    content = hashlib.blake2b(f"{array.dtype}{array.shape}".encode(), digest_size=16)
    content.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return {"dtype": str(array.dtype), "shape": list(array.shape), "digest": content.hexdigest()}


def _digest_json(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
