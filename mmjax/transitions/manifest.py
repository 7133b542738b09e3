"""Where every parameter of a stage came from."""

import collections
import dataclasses
import posixpath
from collections.abc import Iterator
from typing import Any, Literal

import jax
import numpy as np

from mmjax.errors import InputError
from mmjax.typing import Array

How = Literal["copied", "tiled", "resized", "fresh", "merged", "loaded"]
SCHEMA_VERSION = 1
_LISTED = 8  # paths of one part that a summary names


@dataclasses.dataclass(frozen=True)
class Entry:
    """The origin of one parameter.

    Attributes:
        target: its path in the stage that begins.
        source: the path, in the stage before, that it was made from; None if it is fresh.
        how: "copied" unchanged; "tiled": repeated over new windows; "resized": interpolated; "fresh": initialized; "merged": a kernel with
            its low-rank update added; "loaded": read from the file or folder that `source` names.
        shape, dtype: of the new parameter.
        note: what a reader may want to know beside that.
    """

    target: str
    source: str | None
    how: How
    shape: tuple[int, ...]
    dtype: str
    note: str = ""

    @classmethod
    def of(
        cls,
        value: Array | jax.ShapeDtypeStruct,
        target: str,
        source: str | None,
        how: How,
        note: str = "",
    ) -> "Entry":
        """The entry of a parameter with this value."""
        return cls(target, source, how, tuple(value.shape), np.dtype(value.dtype).name, note)

    @property
    def sources(self) -> tuple[str, ...]:
        """Every path of the stage before that went into the parameter."""
        if self.source is None or self.how == "loaded":
            return ()
        if self.how != "merged":
            return (self.source,)
        module = self.source.removesuffix("kernel")
        return (self.source, f"{module}lora_a", f"{module}lora_b")

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The origin of every parameter of a stage, and what of the stage before was dropped.

    Attributes:
        entries: one for each parameter, by path.
        stage, transitions: the stage that begins, and what was applied, in order.
        dropped: paths of the stage before that no parameter was made from.
    """

    entries: tuple[Entry, ...]
    stage: str = ""
    transitions: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {"schema_version": SCHEMA_VERSION} | dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Manifest":
        """The manifest that `to_json` wrote.

        Raises:
            InputError: it was written by another version.
        """
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(
                f"This is a manifest of version {version}; version {SCHEMA_VERSION} is read here."
            )
        entries = tuple(
            Entry(**entry | {"shape": tuple(entry["shape"])}) for entry in data["entries"]
        )
        return cls(entries, data["stage"], tuple(data["transitions"]), tuple(data["dropped"]))

    def summary(self) -> str:
        """A table for people: one line for each part of the model and way of origin."""
        rows = [("part", "origin", "leaves", "parameters", "note"), *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            f"{part:<{widths[0]}}  {how:<{widths[1]}}  {leaves:>{widths[2]}}  {size:>{widths[3]}}  {note}".rstrip()
            for part, how, leaves, size, note in rows
        ]
        if self.dropped:
            lines.append(f"dropped: {', '.join(self.dropped_parts())}")
        return "\n".join(lines)

    def dropped_parts(self) -> list[str]:
        """Each path that was dropped; or, of a part of which more were than one can read, the folder that they share."""
        parts: dict[str, list[str]] = collections.defaultdict(list)
        for path in self.dropped:
            parts[path.split("/")[0]].append(path)
        return [
            name
            for paths in parts.values()
            for name in (
                paths
                if len(paths) <= _LISTED
                else [f"{posixpath.commonpath(paths)}/ ({len(paths)} arrays)"]
            )
        ]

    def _rows(self) -> Iterator[tuple[str, str, str, str, str]]:
        groups: dict[tuple[str, str, str], list[Entry]] = collections.defaultdict(list)
        for entry in self.entries:
            groups[entry.target.split("/")[0], entry.how, entry.note].append(entry)
        for (part, how, note), entries in groups.items():
            yield part, how, str(len(entries)), f"{sum(entry.size for entry in entries):,}", note
