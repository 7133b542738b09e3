"""Which source a row comes from: weights turned into a fixed periodic order, so that the ratio holds in any window of rows.

The packing plan of a source: which examples stand in which row, made once from the lengths of all of them.

An example becomes one unit or several: its prefix with as many continuations as a row has room for, in order; each further unit repeats the
prefix, and the continuations that the example wants repeated; what has no room beside these stands in units without them. Units are put
into
rows first-fit. The plan is a handful of index arrays; texts and images are read again when a row is loaded.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from absl import logging

from mmjax.data.examples import Example, Report, SampleError, Skips, describe, listed
from mmjax.data.sources import Source
from mmjax.data.text.tokenizer import SegmentTokenizer, TokenizedSegment
from mmjax.errors import InputError

MAX_PERIOD = 10_000


class Mixture:
    """Maps a global index to (source, index within that source) in constant time.

    The order repeats after `period` rows and holds each source's exact share in them. Within, it follows Tijdeman's rule ("The chairman
    assignment problem", 1980): after any number n of rows, each of K sources has had n times its share, give or take at most
    1 - 1 / (2K - 2). In any window the count of each source is therefore within 1 of its share for two sources, and within 2 for more;
    a window as long as a multiple of the period is exact.

    Attributes:
        counts: rows of each source in one period.
        period: the smallest that holds the shares exactly, but at most MAX_PERIOD: odd shares are rounded to multiples of 1 / MAX_PERIOD.
    """

    def __init__(self, weights: Sequence[float], names: Sequence[str] | None = None):
        """weights: positive, of any sum. names: of the sources, for messages. Raises InputError for a weight that cannot be kept."""
        names = names or [str(number) for number in range(len(weights))]
        for name, weight in zip(names, weights, strict=True):
            if not (weight > 0 and math.isfinite(weight)):
                raise InputError(
                    f"The weight of source {name!r} is {weight}; it must be positive. To skip a source, leave it out."
                )
        self.counts = _count(weights)
        self.period = sum(self.counts)
        for name, count in zip(names, self.counts, strict=True):
            if not count:
                raise InputError(
                    f"The weight of source {name!r} is under 1 / {2 * MAX_PERIOD} of all weights; it would never be read."
                )
        self._source = _order(self.counts)
        self._rank = _rank(self._source)

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each source, as it is kept."""
        return tuple(count / self.period for count in self.counts)

    def locate(self, index: int) -> tuple[int, int]:
        """(number of the source, index of the row within the source) of row `index` >= 0."""
        cycle, place = divmod(index, self.period)
        source = int(self._source[place])
        return source, cycle * self.counts[source] + int(self._rank[place])


def _count(weights: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers in the ratio of the weights, exact if a period of at most MAX_PERIOD allows, else by largest remainders."""
    exact = [Fraction(weight) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    simple = [share.limit_denominator(MAX_PERIOD) for share in shares]
    period = math.lcm(*(share.denominator for share in simple))
    # A decimal weight such as 0.1 is no exact binary fraction; what agrees to 1e-12 is what the user wrote.
    same = all(abs(share - near) < 1e-12 for share, near in zip(shares, simple, strict=True))
    if same and sum(simple) == 1 and period <= MAX_PERIOD:
        return tuple(int(share * period) for share in simple)
    counts = [math.floor(share * MAX_PERIOD) for share in shares]
    remainders = sorted(
        range(len(shares)), key=lambda source: counts[source] - shares[source] * MAX_PERIOD
    )
    for source in remainders[: MAX_PERIOD - sum(counts)]:
        counts[source] += 1
    return tuple(counts)


def _order(counts: Sequence[int]) -> np.ndarray:
    """[period] the source of each row: among those whose count is due, the one that would first fall behind.

    In whole numbers: `due` is (n * share - rows so far) * period, and the bound 1 - 1 / (2K - 2) is scaled alike by 2K - 2.
    """
    share = np.array(counts, np.int64)
    if len(share) == 1:
        return np.zeros(counts[0], np.int32)
    period, scale = int(share.sum()), 2 * len(share) - 2
    due = np.zeros_like(share)
    order = np.empty(period, np.int32)
    for place in range(period):
        due += share
        deadline = np.where(
            due * scale >= period, ((scale - 1) * period - due * scale) / share, np.inf
        )
        order[place] = chosen = int(np.argmin(deadline))
        due[chosen] -= period
    assert not due.any()
    return order


def _rank(order: np.ndarray) -> np.ndarray:
    """[period] how many rows of the same source stand before each."""
    rank = np.empty(len(order), np.int32)
    for source in np.unique(order):
        mine = order == source
        rank[mine] = np.arange(mine.sum())
    return rank


OPEN_ROWS = 512
"""First-fit looks at this many unfinished rows, so that planning stays linear in the number of examples."""
_PROGRESS_SECONDS = 5.0


@dataclass(frozen=True)
class RowCapacity:
    """What one row has room for: tokens of text, and images."""

    text: int
    images: int

    def __add__(self, other: "RowCapacity") -> "RowCapacity":
        return RowCapacity(self.text + other.text, self.images + other.images)

    def fits(self, limit: "RowCapacity") -> bool:
        """Whether this much fits into a row of that capacity."""
        return self.text <= limit.text and self.images <= limit.images


@dataclass(frozen=True, eq=False)
class PackingPlan:
    """Units in the order of their rows.

    Attributes:
        rows: [R + 1]; row r consists of the units rows[r] .. rows[r + 1] - 1.
        examples: [U] the example of each unit.
        continuations: [U + 1]; unit u consists of the continuations numbers[continuations[u]] .. numbers[continuations[u + 1] - 1] of
        its example.
        numbers: [n] continuation numbers within an example.
        text, images, supervised: text tokens, images and targets in all rows together.
        report: samples seen and skipped.
    """

    rows: np.ndarray
    examples: np.ndarray
    continuations: np.ndarray
    numbers: np.ndarray
    text: int
    images: int
    supervised: int
    report: Report

    def __len__(self) -> int:
        """R, the number of rows."""
        return len(self.rows) - 1

    def units(self, row: int) -> list[tuple[int, list[int]]]:
        """(index of the example, numbers of its continuations) of each unit of a row."""
        return [
            (
                int(self.examples[unit]),
                self.numbers[self.continuations[unit] : self.continuations[unit + 1]].tolist(),
            )
            for unit in range(self.rows[row], self.rows[row + 1])
        ]


def make_plan(
    source: Source,
    segment_tokenizer: SegmentTokenizer,
    limit: RowCapacity,
    *,
    name: str,
    seed: Sequence[int] | None,
    skip_budget: float,
) -> PackingPlan:
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
        units.add(index, example, segment_tokenizer)
        if time.monotonic() - shown > _PROGRESS_SECONDS:
            shown = time.monotonic()
            logging.info(
                "Source %s: measured %d of %d examples in %.0f s",
                name,
                index + 1,
                len(source),
                shown - started,
            )
    if not units.supervised:
        raise InputError(_nothing_to_learn(name, source, segment_tokenizer, units.report))
    skips = Skips(skip_budget, f"Source {name!r}")
    skips.add([units.report])
    skips.check(final=True)
    return units.pack(seed)


@dataclass(frozen=True)
class _Unit:
    """Some continuations of an example: their numbers, the room they take with their prefix, and the targets among them."""

    numbers: list[int]
    capacity: RowCapacity
    supervised: int

    def extended(self, number: int, continuation: TokenizedSegment) -> "_Unit":
        return _Unit(
            [*self.numbers, number],
            self.capacity + _room(continuation),
            self.supervised + continuation.supervised,
        )


@dataclass(eq=False)
class _Units:
    """The units found so far."""

    limit: RowCapacity
    examples: list[int] = field(default_factory=list)
    continuations: list[list[int]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    supervised: int = 0
    report: Report = field(default_factory=Report)

    def add(self, index: int, example: Example, segment_tokenizer: SegmentTokenizer) -> None:
        """Splits an example into units. A continuation that fits into no row, or teaches nothing, is skipped and counted."""
        prefix = segment_tokenizer.prefix(example.prefix)
        bare = _Unit([], _room(prefix), prefix.supervised)
        begun = unit = bare  # with the repeated continuations
        apart: list[tuple[int, TokenizedSegment]] = []  # have no room beside them
        self.report.seen += max(1, len(example.continuations))
        if not example.continuations:
            self.report.skip("no supervised token", example.id)
        for number, segments in enumerate(example.continuations):
            continuation = segment_tokenizer.continuation(segments)
            alone = bare.capacity + _room(continuation)
            if cause := self._unusable(prefix, continuation, alone):
                self.report.skip(
                    cause, f"{example.id}, continuation {number}, with {alone.text} tokens"
                )
            elif not (begun.capacity + _room(continuation)).fits(self.limit):
                apart.append((number, continuation))
            elif number < example.repeated:
                begun = unit = begun.extended(number, continuation)
            else:
                unit = self._extend(index, unit, begun, number, continuation)
        self._close(index, unit)
        unit = bare
        for number, continuation in apart:
            unit = self._extend(index, unit, bare, number, continuation)
        self._close(index, unit)

    def _extend(
        self, index: int, unit: "_Unit", begun: "_Unit", number: int, continuation: TokenizedSegment
    ) -> "_Unit":
        """The unit with one more continuation; where it has no room for it, it is closed, and the continuation comes to what each unit
        begins with."""
        if not (unit.capacity + _room(continuation)).fits(self.limit):
            self._close(index, unit)
            unit = begun
        return unit.extended(number, continuation)

    def _unusable(
        self, prefix: TokenizedSegment, continuation: TokenizedSegment, capacity: RowCapacity
    ) -> str | None:
        if not prefix.supervised + continuation.supervised:
            return "no supervised token"
        if capacity.text > self.limit.text:
            return "longer than text_length"
        if capacity.images > self.limit.images:
            return "more images than images_per_row"
        return None

    def _close(self, index: int, unit: "_Unit") -> None:
        if not unit.numbers:
            return
        self.examples.append(index)
        self.continuations.append(unit.numbers)
        self.sizes.append((unit.capacity.text, unit.capacity.images))
        self.supervised += unit.supervised

    def pack(self, seed: Sequence[int] | None) -> PackingPlan:
        """Packs the units into rows, in seeded order."""
        sizes = np.array(self.sizes, np.int64)
        count = len(sizes)
        order = (
            np.arange(count)
            if seed is None
            else np.random.default_rng(list(seed)).permutation(count)
        )
        row_of = first_fit(sizes[order], self.limit)
        by_row = np.argsort(row_of, kind="stable")
        order = order[by_row]
        lengths = [len(self.continuations[unit]) for unit in order]
        return PackingPlan(
            rows=np.searchsorted(row_of[by_row], np.arange(row_of.max() + 2)),
            examples=np.array(self.examples, np.int64)[order],
            continuations=np.concatenate([[0], np.cumsum(lengths)]),
            numbers=np.concatenate([self.continuations[unit] for unit in order]).astype(np.int32),
            text=int(sizes[:, 0].sum()),
            images=int(sizes[:, 1].sum()),
            supervised=self.supervised,
            report=self.report,
        )


def first_fit(sizes: np.ndarray, limit: RowCapacity) -> np.ndarray:
    """Puts each unit into the first row that has capacity, among the OPEN_ROWS latest that are not full.

    Args:
        sizes: [U, 2] text tokens and images of each unit; none exceeds the limit.

    Returns:
        [U] the row of each unit; rows are numbered in the order in which they were begun.
    """
    least = sizes.min(axis=0)
    free = np.zeros(
        (OPEN_ROWS, 2), np.int64
    )  # room left in the open rows, in the order of their numbers
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


def _room(piece: TokenizedSegment) -> RowCapacity:
    return RowCapacity(piece.text, len(piece.images))


def _nothing_to_learn(
    name: str, source: Source, segment_tokenizer: SegmentTokenizer, report: Report
) -> str:
    found = f"Source {name!r} has no token to learn from: of {report.seen:,} samples none can be used ({describe(report.causes)})."
    for index in range(len(source)):
        try:
            example = source[index]
        except SampleError:
            continue
        pieces = [
            segment_tokenizer.prefix(example.prefix),
            *map(segment_tokenizer.continuation, example.continuations),
        ]
        texts = [
            "(image)" * len(piece.images) + segment_tokenizer.tokenizer.decode(piece.tokens)
            for piece in pieces
        ]
        return f"{found} Its first readable example, {example.id}, is: {' | '.join(texts)[:500]!r}."
    return f"{found} No example could be read:\n{listed(report.examples)}"
