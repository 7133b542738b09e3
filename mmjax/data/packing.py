"""The packing plan of a source: which examples stand in which row, made once from the lengths of all of them.

An example becomes one unit or several: its prefix with as many branches as a row has room for, in order; each further unit repeats the
prefix, and the branches that the example wants repeated; what has no room beside these stands in units without them. Units are put into
rows first-fit. The plan is a handful of index arrays; texts and pictures are read again when a row is loaded.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from absl import logging

from mmjax.data.encoding import Encoded, Encoder
from mmjax.data.examples import Example, SampleError
from mmjax.data.skips import Report, Skips, describe, listed
from mmjax.data.sources import Source
from mmjax.errors import InputError

OPEN_ROWS = 512
"""First-fit looks at this many unfinished rows, so that planning stays linear in the number of examples."""
_PROGRESS_SECONDS = 5.0


@dataclass(frozen=True)
class Room:
    """What one row has room for: tokens of text, and pictures."""

    text: int
    images: int

    def __add__(self, other: "Room") -> "Room":
        return Room(self.text + other.text, self.images + other.images)

    def fits(self, limit: "Room") -> bool:
        """Whether this much fits into a row of that room."""
        return self.text <= limit.text and self.images <= limit.images


@dataclass(frozen=True, eq=False)
class Plan:
    """Units in the order of their rows.

    Attributes:
        rows: [R + 1]; row r consists of the units rows[r] .. rows[r + 1] - 1.
        examples: [U] the example of each unit.
        branches: [U + 1]; unit u consists of the branches numbers[branches[u]] .. numbers[branches[u + 1] - 1] of its example.
        numbers: [n] branch numbers within an example.
        text, images, supervised: text tokens, pictures and targets in all rows together.
        report: samples seen and skipped.
    """

    rows: np.ndarray
    examples: np.ndarray
    branches: np.ndarray
    numbers: np.ndarray
    text: int
    images: int
    supervised: int
    report: Report

    def __len__(self) -> int:
        """R, the number of rows."""
        return len(self.rows) - 1

    def units(self, row: int) -> list[tuple[int, list[int]]]:
        """(index of the example, numbers of its branches) of each unit of a row."""
        return [
            (int(self.examples[unit]), self.numbers[self.branches[unit] : self.branches[unit + 1]].tolist())
            for unit in range(self.rows[row], self.rows[row + 1])
        ]


def make_plan(source: Source, encoder: Encoder, limit: Room, *, name: str, seed: Sequence[int] | None, skip_budget: float) -> Plan:
    """Reads every example once, and packs them.

    Args:
        limit: room in a row.
        name: of the source, for messages.
        seed: of the order in which units are packed; None: in the order of the source.
        skip_budget: share of samples that may be unusable.

    Raises:
        InputError: nothing in the source carries loss, or too many samples cannot be used.
    """
    units = _Units(limit)
    started = shown = time.monotonic()
    for index in range(len(source)):
        try:
            example = source[index]
        except SampleError as error:
            units.report.seen += 1
            units.report.skip(error.cause, error.detail or f"{name}[{index}]")
            continue
        units.add(index, example, encoder)
        if time.monotonic() - shown > _PROGRESS_SECONDS:
            shown = time.monotonic()
            logging.info("Source %s: measured %d of %d examples in %.0f s", name, index + 1, len(source), shown - started)
    if not units.supervised:
        raise InputError(_nothing_to_learn(name, source, encoder, units.report))
    skips = Skips(skip_budget, f"Source {name!r}")
    skips.add([units.report])
    skips.check(final=True)
    return units.pack(seed)


@dataclass(frozen=True)
class _Unit:
    """Some branches of an example: their numbers, the room they take with their prefix, and the targets among them."""

    numbers: list[int]
    room: Room
    supervised: int

    def extended(self, number: int, branch: Encoded) -> "_Unit":
        return _Unit([*self.numbers, number], self.room + _room(branch), self.supervised + branch.supervised)


@dataclass(eq=False)
class _Units:
    """The units found so far."""

    limit: Room
    examples: list[int] = field(default_factory=list)
    branches: list[list[int]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    supervised: int = 0
    report: Report = field(default_factory=Report)

    def add(self, index: int, example: Example, encoder: Encoder) -> None:
        """Splits an example into units. A branch that fits into no row, or teaches nothing, is skipped and counted."""
        prefix = encoder.prefix(example.prefix)
        bare = _Unit([], _room(prefix), prefix.supervised)
        begun = unit = bare  # with the repeated branches
        apart: list[tuple[int, Encoded]] = []  # have no room beside them
        self.report.seen += max(1, len(example.branches))
        if not example.branches:
            self.report.skip("no supervised token", example.id)
        for number, segments in enumerate(example.branches):
            branch = encoder.branch(segments)
            alone = bare.room + _room(branch)
            if cause := self._unusable(prefix, branch, alone):
                self.report.skip(cause, f"{example.id}, branch {number}, with {alone.text} tokens")
            elif not (begun.room + _room(branch)).fits(self.limit):
                apart.append((number, branch))
            elif number < example.repeated:
                begun = unit = begun.extended(number, branch)
            else:
                unit = self._extend(index, unit, begun, number, branch)
        self._close(index, unit)
        unit = bare
        for number, branch in apart:
            unit = self._extend(index, unit, bare, number, branch)
        self._close(index, unit)

    def _extend(self, index: int, unit: "_Unit", begun: "_Unit", number: int, branch: Encoded) -> "_Unit":
        """The unit with one more branch; where it has no room for it, it is closed, and the branch comes to what each unit begins with."""
        if not (unit.room + _room(branch)).fits(self.limit):
            self._close(index, unit)
            unit = begun
        return unit.extended(number, branch)

    def _unusable(self, prefix: Encoded, branch: Encoded, room: Room) -> str | None:
        if not prefix.supervised + branch.supervised:
            return "no supervised token"
        if room.text > self.limit.text:
            return "longer than text_length"
        if room.images > self.limit.images:
            return "more pictures than images_per_row"
        return None

    def _close(self, index: int, unit: "_Unit") -> None:
        if not unit.numbers:
            return
        self.examples.append(index)
        self.branches.append(unit.numbers)
        self.sizes.append((unit.room.text, unit.room.images))
        self.supervised += unit.supervised

    def pack(self, seed: Sequence[int] | None) -> Plan:
        """Packs the units into rows, in seeded order."""
        sizes = np.array(self.sizes, np.int64)
        count = len(sizes)
        order = np.arange(count) if seed is None else np.random.default_rng(list(seed)).permutation(count)
        row_of = first_fit(sizes[order], self.limit)
        by_row = np.argsort(row_of, kind="stable")
        order = order[by_row]
        lengths = [len(self.branches[unit]) for unit in order]
        return Plan(
            rows=np.searchsorted(row_of[by_row], np.arange(row_of.max() + 2)),
            examples=np.array(self.examples, np.int64)[order],
            branches=np.concatenate([[0], np.cumsum(lengths)]),
            numbers=np.concatenate([self.branches[unit] for unit in order]).astype(np.int32),
            text=int(sizes[:, 0].sum()),
            images=int(sizes[:, 1].sum()),
            supervised=self.supervised,
            report=self.report,
        )


def first_fit(sizes: np.ndarray, limit: Room) -> np.ndarray:
    """Puts each unit into the first row that has room, among the OPEN_ROWS latest that are not full.

    Args:
        sizes: [U, 2] text tokens and pictures of each unit; none exceeds the limit.

    Returns:
        [U] the row of each unit; rows are numbered in the order in which they were begun.
    """
    least = sizes.min(axis=0)
    free = np.zeros((OPEN_ROWS, 2), np.int64)  # room left in the open rows, in the order of their numbers
    numbers = np.zeros(OPEN_ROWS, np.int64)
    opened, begun = 0, 0
    rows = np.empty(len(sizes), np.int64)
    for unit, size in enumerate(sizes):
        fits = (free[:opened] >= size).all(axis=1)
        place = int(fits.argmax()) if fits.any() else opened
        if place == opened:
            if opened == OPEN_ROWS:
                place = opened = _forget(0, free, numbers, opened)
            free[place], numbers[place] = (limit.text, limit.images), begun
            opened, begun = opened + 1, begun + 1
        rows[unit] = numbers[place]
        free[place] -= size
        if (free[place] < least).any():
            opened = _forget(place, free, numbers, opened)
    return rows


def _forget(place: int, free: np.ndarray, numbers: np.ndarray, opened: int) -> int:
    """Takes a row off the list of open rows and returns how many are left."""
    free[place : opened - 1] = free[place + 1 : opened].copy()
    numbers[place : opened - 1] = numbers[place + 1 : opened].copy()
    return opened - 1


def _room(piece: Encoded) -> Room:
    return Room(piece.text, len(piece.images))


def _nothing_to_learn(name: str, source: Source, encoder: Encoder, report: Report) -> str:
    found = f"Source {name!r} has no token to learn from: of {report.seen:,} samples none can be used ({describe(report.causes)})."
    for index in range(len(source)):
        try:
            example = source[index]
        except SampleError:
            continue
        pieces = [encoder.prefix(example.prefix), *map(encoder.branch, example.branches)]
        texts = ["(picture)" * len(piece.images) + encoder.tokenizer.decode(piece.tokens) for piece in pieces]
        return f"{found} Its first readable example, {example.id}, is: {' | '.join(texts)[:500]!r}."
    return f"{found} No example could be read:\n{listed(report.examples)}"
