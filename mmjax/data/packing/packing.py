"""Which rows a source becomes, and from which source each row comes.

`make_plan` decides once, from the lengths of all examples of a source, which of them stand in which row. An example becomes one unit or
several: its prefix with as many continuations as a row has room for, in order; each further unit repeats the prefix, and the
continuations that the example wants repeated; a continuation that has no room beside these stands in a unit without them. Units are put
into rows first-fit. The plan is a handful of index arrays; texts and images are read again when a row is loaded.

`Mixture` turns the weights of sources into a fixed periodic order, so that the ratio holds in any window of rows.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from absl import logging

from mmjax.data.examples import (
    Example,
    Image,
    Report,
    SampleError,
    Segment,
    Skips,
    describe,
    listed,
)
from mmjax.data.images.decode import check_file
from mmjax.data.sources.base import Source
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
                    f"The weight of source {name!r} must be positive, not {weight}. To skip a source, remove it."
                )
        self.counts = _count(weights)
        self.period = sum(self.counts)
        for name, count in zip(names, self.counts, strict=True):
            if not count:
                raise InputError(
                    f"The weight of source {name!r} must be at least 1 / {2 * MAX_PERIOD} of all weights; it would never be read."
                )
        self._source = _order(self.counts)
        self._rank = np.empty(self.period, np.int32)  # rows of the same source before each
        for source, count in enumerate(self.counts):
            self._rank[self._source == source] = np.arange(count)

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
    surplus = [count - share * MAX_PERIOD for count, share in zip(counts, shares, strict=True)]
    for source in sorted(range(len(shares)), key=surplus.__getitem__)[: MAX_PERIOD - sum(counts)]:
        counts[source] += 1
    return tuple(counts)


def _order(counts: Sequence[int]) -> np.ndarray:
    """[period] the source of each row: among those whose count is due, the one that would first fall behind.

    In whole numbers: `due` is (n * share - rows so far) * period, and the bound 1 - 1 / (2K - 2) is scaled alike by 2K - 2.
    """
    share = np.array(counts, np.int64)
    period, scale = int(share.sum()), max(1, 2 * len(share) - 2)
    due, order = np.zeros_like(share), np.empty(period, np.int32)
    for place in range(period):
        due += share
        slack = ((scale - 1) * period - due * scale) / share
        order[place] = chosen = int(np.argmin(np.where(due * scale >= period, slack, np.inf)))
        due[chosen] -= period
    assert not due.any()
    return order


OPEN_ROWS = 512
"""First-fit looks at this many unfinished rows, so that planning stays linear in the number of examples."""
_PROGRESS_SECONDS = 5.0
_SILENT = "no supervised token"


@dataclass(frozen=True, slots=True)
class RowCapacity:
    """What one row has room for: tokens of text, and images."""

    text: int
    images: int

    @classmethod
    def of(cls, segment: TokenizedSegment) -> "RowCapacity":
        """What a segment takes of it."""
        return cls(segment.text, len(segment.images))

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
        continuations: [U + 1]; unit u consists of the continuations numbers[continuations[u] : continuations[u + 1]] of its example.
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
        found = []
        for unit in range(self.rows[row], self.rows[row + 1]):
            numbers = self.numbers[self.continuations[unit] : self.continuations[unit + 1]]
            found.append((int(self.examples[unit]), numbers.tolist()))
        return found


def make_plan(
    source: Source,
    segment_tokenizer: SegmentTokenizer,
    limit: RowCapacity,
    *,
    name: str,
    seed: Sequence[int] | None,
    skip_budget: float,
) -> PackingPlan:
    """Reads every example once, and packs them. Images are looked for, but not read.

    Args:
        limit: room in a row.
        name: of the source, for messages.
        seed: of the order in which units are packed; None: in the order of the source.
        skip_budget: share of samples that may be unusable.

    Raises:
        InputError: nothing in the source carries loss, or too many samples cannot be used.
    """
    report = Report()
    examples: list[int] = []
    units: list[_Unit] = []
    started = shown = time.monotonic()
    for index in range(len(source)):
        try:
            example = source[index]
        except SampleError as error:
            report.seen += 1
            report.skip(error.cause, error.detail or f"{name}[{index}]")
            continue
        found = [unit for unit in _units(example, segment_tokenizer, limit, report) if unit.numbers]
        examples.extend([index] * len(found))
        units.extend(found)
        if time.monotonic() - shown > _PROGRESS_SECONDS:
            shown = time.monotonic()
            done = f"{index + 1} of {len(source)} examples in {shown - started:.0f} s"
            logging.info("Source %s: measured %s", name, done)
    if not any(unit.supervised for unit in units):
        raise InputError(_nothing_to_learn(name, source, segment_tokenizer, report))
    skips = Skips(skip_budget, f"Source {name!r}")
    skips.add([report])
    skips.check(final=True)
    return _packed(examples, units, limit, seed, report)


@dataclass(frozen=True, slots=True)
class _Unit:
    """Some continuations of an example: their numbers, the room they take with their prefix, and the targets among them."""

    numbers: tuple[int, ...]
    capacity: RowCapacity
    supervised: int

    def extended(self, number: int, continuation: TokenizedSegment) -> "_Unit":
        capacity = self.capacity + RowCapacity.of(continuation)
        supervised = self.supervised + continuation.supervised
        return _Unit((*self.numbers, number), capacity, supervised)


def _units(
    example: Example, segment_tokenizer: SegmentTokenizer, limit: RowCapacity, report: Report
) -> Iterator[_Unit]:
    """Splits an example into units; some may be empty. A continuation that fits into no row, teaches nothing, or shows an image that is not
    there, is skipped and counted."""
    samples = max(1, len(example.continuations))
    report.seen += samples
    try:
        prefix = _tokenised(segment_tokenizer.prefix, example.prefix, limit.images)
    except SampleError as error:
        report.skip(error.cause, f"{example.id}: {error.detail}", samples)
        return
    bare = _Unit((), RowCapacity.of(prefix), prefix.supervised)
    begun = unit = bare  # `begun`: with the repeated continuations alone
    apart: list[tuple[int, TokenizedSegment]] = []  # have no room beside those
    if not example.continuations:
        report.skip(_SILENT, example.id)
    for number, segments in enumerate(example.continuations):
        try:
            room = limit.images - bare.capacity.images
            continuation = _tokenised(segment_tokenizer.continuation, segments, room)
        except SampleError as error:
            report.skip(error.cause, f"{example.id}, continuation {number}: {error.detail}")
            continue
        size = RowCapacity.of(continuation)
        alone = bare.capacity + size
        cause = None
        if not prefix.supervised + continuation.supervised:
            cause = _SILENT
        elif alone.text > limit.text:
            cause = "longer than text_length"
        if cause is not None:
            report.skip(cause, f"{example.id}, continuation {number}, with {alone.text} tokens")
        elif not (begun.capacity + size).fits(limit):
            apart.append((number, continuation))
        elif number < example.repeated:
            begun = unit = begun.extended(number, continuation)
        elif (unit.capacity + size).fits(limit):
            unit = unit.extended(number, continuation)
        else:
            yield unit
            unit = begun.extended(number, continuation)
    yield unit
    unit = bare
    for number, continuation in apart:
        if not (unit.capacity + RowCapacity.of(continuation)).fits(limit):
            yield unit
            unit = bare
        unit = unit.extended(number, continuation)
    yield unit


def _tokenised(
    tokenise: Callable[[tuple[Segment, ...]], TokenizedSegment],
    segments: tuple[Segment, ...],
    room: int,
) -> TokenizedSegment:
    """The tokens of a prefix or a continuation.

    Raises SampleError for more images than there is room for (before anybody makes tokens of them: a record can name a million), for the
    first without a file (whether that is an image is seen when it is loaded), and for a text that the tokenizer refuses.
    """
    images = [segment for segment in segments if isinstance(segment, Image)]
    if len(images) > room:
        raise SampleError("more images than images_per_row", f"{len(images):,} images")
    for image in images:
        if isinstance(image.source, str | Path):
            check_file(image.source)
    try:
        return tokenise(segments)
    except (InputError, RecursionError) as error:
        raise SampleError("text that cannot be tokenised", str(error)) from None


def _nothing_to_learn(
    name: str, source: Source, segment_tokenizer: SegmentTokenizer, report: Report
) -> str:
    """What the user reads of a source of which no sample can be used."""
    found = f"Source {name!r} has no token to learn from: of {report.seen:,} samples none can be used ({describe(report.causes)})."
    shown = listed(report.examples)
    for index in range(len(source)):
        try:
            example = source[index]
        except SampleError:
            continue
        if _SILENT in report.causes:
            continuations = map(segment_tokenizer.continuation, example.continuations)
            segments = [segment_tokenizer.prefix(example.prefix), *continuations]
            decode = segment_tokenizer.tokenizer.decode
            texts = ["(image)" * len(piece.images) + decode(piece.tokens) for piece in segments]
            found += f" Its first readable example, {example.id}, is: {' | '.join(texts)[:500]!r}."
        return f"{found} For example:\n{shown}"
    return f"{found} No example could be read:\n{shown}"


def _packed(
    examples: list[int],
    units: list[_Unit],
    limit: RowCapacity,
    seed: Sequence[int] | None,
    report: Report,
) -> PackingPlan:
    """Packs units, of which those examples are, into rows, in seeded order."""
    sizes = np.array([(unit.capacity.text, unit.capacity.images) for unit in units], np.int64)
    order = np.arange(len(units))
    if seed is not None:
        order = np.random.default_rng(list(seed)).permutation(len(units))
    row_of = first_fit(sizes[order], limit)
    by_row = np.argsort(row_of, kind="stable")
    order = order[by_row]
    numbers = [units[unit].numbers for unit in order]
    return PackingPlan(
        rows=np.searchsorted(row_of[by_row], np.arange(row_of.max() + 2)),
        examples=np.array(examples, np.int64)[order],
        continuations=np.concatenate([[0], np.cumsum(list(map(len, numbers)))]),
        numbers=np.concatenate(numbers).astype(np.int32),
        text=int(sizes[:, 0].sum()),
        images=int(sizes[:, 1].sum()),
        supervised=sum(unit.supervised for unit in units),
        report=report,
    )


def first_fit(sizes: np.ndarray, limit: RowCapacity) -> np.ndarray:
    """Puts each unit into the first row that has room, among the OPEN_ROWS latest that are not full.

    Args:
        sizes: [U, 2] text tokens and images of each unit; none exceeds the limit.

    Returns:
        [U] the row of each unit; rows are numbered in the order in which they were begun.
    """
    least = sizes.min(axis=0)
    # Of the open rows, in order: the room left in them, and their numbers.
    free, numbers = np.zeros((OPEN_ROWS, 2), np.int64), np.zeros(OPEN_ROWS, np.int64)
    opened, begun = 0, 0
    rows = np.empty(len(sizes), np.int64)

    def close(place: int) -> int:
        """Takes a row off the list of open rows and returns how many are left."""
        for array in (free, numbers):
            array[place : opened - 1] = array[place + 1 : opened].copy()
        return opened - 1

    for unit, size in enumerate(sizes):
        fits = (free[:opened] >= size).all(axis=1)
        place = int(fits.argmax()) if fits.any() else opened
        if place == opened:
            if opened == OPEN_ROWS:
                place = opened = close(0)
            free[place], numbers[place] = (limit.text, limit.images), begun
            opened, begun = opened + 1, begun + 1
        rows[unit] = numbers[place]
        free[place] -= size
        if (free[place] < least).any():
            opened = close(place)
    return rows
