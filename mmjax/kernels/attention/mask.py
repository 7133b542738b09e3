"""Masks as intervals: causal rows, packed segments, image prefixes and windows are all "this query row sees keys [start, end)".

From the intervals follow which tiles of scores nobody sees and in which everything is seen, and which rows see a key.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.typing import PADDING_SEGMENT, AnyArray, Array, Bool, Int

type Form = Literal["full", "causal", "segments", "intervals"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IntervalMask:
    """Query row i sees the keys [start, end) and, where a prefix is given, [prefix_start, prefix_end) as well.

    The two intervals of a row do not overlap. An empty interval has start == end; a row that sees nothing attends to nothing and yields
    zeros.

    Attributes:
        start, end: [B, T] int32.
        prefix_start, prefix_end: [B, T] int32, or both None.
        form: what is known of the intervals when a program is compiled, for implementations that know only some masks. "full": all rows see
            all keys; "causal": as many rows as keys, each sees those up to its own; "segments": the same within its segment, which begins
            at `start`, and padding sees nothing; "intervals": nothing.
    """

    start: Int[Array, "B T"]
    end: Int[Array, "B T"]
    prefix_start: Int[Array, "B T"] | None = None
    prefix_end: Int[Array, "B T"] | None = None
    form: Form = dataclasses.field(default="intervals", metadata={"static": True})

    @property
    def intervals(self) -> tuple[tuple[Int[Array, "B T"], Int[Array, "B T"]], ...]:
        """(start, end) of the first interval and, if there is one, of the prefix."""
        if self.prefix_start is None or self.prefix_end is None:
            return ((self.start, self.end),)
        return ((self.start, self.end), (self.prefix_start, self.prefix_end))

    @classmethod
    def of(cls, intervals: Sequence[tuple[Int[Array, "B T"], Int[Array, "B T"]]]) -> "IntervalMask":
        """The mask of one or two intervals, as `intervals` gives them."""
        (start, end), *more = intervals
        assert len(more) <= 1, "a mask has two intervals at most"
        return cls(start, end, *(more[0] if more else (None, None)))

    @classmethod
    def full(cls, batch: int, rows: int, keys: int) -> "IntervalMask":
        """Every row sees every key."""
        start = jnp.zeros((batch, rows), jnp.int32)
        return cls(start, start + keys, form="full")

    @classmethod
    def causal(cls, batch: int, rows: int, keys: int | None = None) -> "IntervalMask":
        """Row i sees the keys up to its own; of fewer rows than keys, the last row sees the last key."""
        first = rows if keys is None else keys
        end = jnp.broadcast_to(
            jnp.arange(first - rows + 1, first + 1, dtype=jnp.int32), (batch, rows)
        )
        return cls(
            jnp.zeros_like(end),
            jnp.maximum(end, 0),
            form="causal" if first == rows else "intervals",
        )

    @classmethod
    def from_media(cls, media: Int[AnyArray, "B T"], tokens: int) -> "IntervalMask":
        """Text row i sees the `tokens` keys of one image, number media[i] counted from 1, and nothing where that is 0 (gated
        cross-attention to the last image before a text: Flamingo, arXiv:2204.14198, section 2.3)."""
        start = (jnp.maximum(media, 1) - 1).astype(jnp.int32) * tokens
        return cls(start, jnp.where(media > 0, start + tokens, start))

    @classmethod
    def from_windows(cls, batch: int, windows: int, rows: int, keys: int) -> "IntervalMask":
        """`windows` groups one behind the other: its `rows` rows see its `keys` keys."""
        start = jnp.repeat(jnp.arange(windows, dtype=jnp.int32) * keys, rows)
        start = jnp.broadcast_to(start, (batch, windows * rows))
        return cls(start, start + keys)

    @classmethod
    def from_segments(
        cls,
        segments: Int[AnyArray, "B T"],
        prefixes: Int[AnyArray, "B T"] | None = None,
        blocks: Int[AnyArray, "B T"] | None = None,
    ) -> "IntervalMask":
        """Causal within a segment. Padding sees nothing.

        Args:
            segments: 1, 2, ... in order along a row, then 0 (see `Batch`), so a segment's interval is found by binary search.
            prefixes: a row also sees the whole of the segment that this names (0: none).
            blocks: rows that follow each other with the same number, not 0, see each other in both directions, as those of an image may.
                A block lies within a segment.
        """
        length = segments.shape[1]
        last = jnp.iinfo(segments.dtype).max
        ordered = jnp.where(segments == PADDING_SEGMENT, last, segments)
        find = jax.vmap(
            lambda row, wanted, side: jnp.searchsorted(row, wanted, side=side), in_axes=(0, 0, None)
        )
        visible = segments != PADDING_SEGMENT
        start = find(ordered, ordered, "left").astype(jnp.int32)
        end = jnp.arange(1, length + 1, dtype=jnp.int32)
        end = jnp.where(
            visible, end if blocks is None else jnp.where(blocks > 0, _run_ends(blocks), end), start
        )
        if prefixes is None:
            return cls(start, end, form="segments" if blocks is None else "intervals")
        prefix_start = find(ordered, prefixes, "left").astype(jnp.int32)
        prefix_end = find(ordered, prefixes, "right").astype(jnp.int32)
        return cls(start, end, prefix_start, jnp.where(visible, prefix_end, prefix_start))

    def within(self, window: int) -> "IntervalMask":
        """The same, but a row sees at most the last `window` of its keys, its own included (a sliding window).

        For rows whose interval ends with their own key, as `from_segments` makes them; a prefix counts as what comes just before the
        interval.
        """
        start = jnp.maximum(self.start, self.end - window)
        if self.prefix_start is None or self.prefix_end is None:
            return IntervalMask(start, self.end)
        left = jnp.maximum(window - (self.end - self.start), 0)
        return IntervalMask(
            start, self.end, jnp.maximum(self.prefix_start, self.prefix_end - left), self.prefix_end
        )

    def dense(self, keys: int) -> Bool[Array, "B T S"]:
        """The mask as booleans, for implementations that hold the scores."""
        position = jnp.arange(keys, dtype=jnp.int32)
        seen = [
            (start[..., None] <= position) & (position < end[..., None])
            for start, end in self.intervals
        ]
        return functools.reduce(jnp.logical_or, seen)

    def sees_something(self, keys: int) -> Bool[Array, "B T"]:
        """Which rows see any of so many keys."""
        clipped = [(jnp.maximum(start, 0), jnp.minimum(end, keys)) for start, end in self.intervals]
        return functools.reduce(jnp.logical_or, [end > start for start, end in clipped])

    def is_seen(self, keys: int) -> Bool[Array, "B S"]:
        """Which of so many keys any row sees."""
        batch = jnp.arange(self.start.shape[0])[:, None]
        change = jnp.zeros((self.start.shape[0], keys + 1), jnp.int32)
        for start, end in self.intervals:
            start, end = jnp.clip(start, 0, keys), jnp.clip(end, 0, keys)
            rows = (end > start).astype(jnp.int32)
            change = change.at[batch, start].add(rows).at[batch, end].add(-rows)
        return jnp.cumsum(change, axis=1)[:, :keys] > 0


def _run_ends(numbers: Int[AnyArray, "B T"]) -> Int[Array, "B T"]:
    """Where the run of equal numbers that a place belongs to ends."""
    length = numbers.shape[1]
    last = jnp.pad(numbers[:, 1:] != numbers[:, :-1], ((0, 0), (0, 1)), constant_values=True)
    ends = jnp.where(last, jnp.arange(1, length + 1, dtype=jnp.int32), length)
    return jax.lax.cummin(ends, axis=1, reverse=True)


SKIP, PARTIAL, FULL = 0, 1, 2
"""A tile of which no row sees any key; some rows see some keys; every row sees every key."""


def tile_classes(
    mask: IntervalMask, keys: int, rows_per_tile: int, keys_per_tile: int
) -> Int[Array, "B I J"]:
    """SKIP, PARTIAL or FULL for every tile of scores. Rows behind the last see what the others of their tile see; keys behind the last are
    seen by nobody."""
    rows = mask.start.shape[1]
    tiles = -(-keys // keys_per_tile)
    begin = jnp.arange(tiles, dtype=jnp.int32) * keys_per_tile
    intervals = [(start[..., None], end[..., None]) for start, end in mask.intervals]
    seen = sum(_overlap(start, end, begin, begin + keys_per_tile) for start, end in intervals)
    if len(intervals) == 2:  # what both hold counts once
        (start, end), (other_start, other_end) = intervals
        both = jnp.maximum(start, other_start), jnp.minimum(end, other_end)
        seen -= _overlap(*both, begin, begin + keys_per_tile)
    pad = ((0, 0), (0, -rows % rows_per_tile), (0, 0))
    some = _by_tile(jnp.pad(seen > 0, pad, constant_values=False), rows_per_tile).any(axis=2)
    every = _by_tile(jnp.pad(seen == keys_per_tile, pad, constant_values=True), rows_per_tile).all(
        axis=2
    )
    return jnp.where(every, FULL, jnp.where(some, PARTIAL, SKIP)).astype(jnp.int32)


def rows_of_keys(mask: IntervalMask, keys: int) -> tuple[Int[Array, "B S"], Int[Array, "B S"]]:
    """For each key the least interval of rows [first, last) that holds all rows that see it: [0, 0) if none does.

    Every row takes part in one minimum for each of the two halves, of a power-of-two length, that its interval is the union of; then the
    halves are halved again, down to single keys: (T + S) log S steps instead of T S.
    """
    rows = jnp.arange(mask.start.shape[1], dtype=jnp.int32)
    nobody = jnp.int32(len(rows))
    first = jnp.full((mask.start.shape[0], keys), nobody)
    last = jnp.full((mask.start.shape[0], keys), jnp.int32(-1))
    for start, end in mask.intervals:
        first = jnp.minimum(first, _spread(start, end, rows, keys, nobody))
        last = jnp.maximum(last, -_spread(start, end, -rows, keys, jnp.int32(1)))
    seen = last >= 0
    return jnp.where(seen, first, 0), jnp.where(seen, last + 1, 0)


def _spread(start: Array, end: Array, values: Array, keys: int, nothing: Array) -> Array:
    """The least of the values whose intervals [start, end) hold a key, for every key."""
    length = end - start
    level = jnp.where(length > 0, 31 - jax.lax.clz(jnp.maximum(length, 1)), -1)
    batch = jnp.arange(start.shape[0])[:, None]
    least = jnp.full((start.shape[0], keys), nothing)
    for power in reversed(range(max(keys, 1).bit_length())):
        width = 1 << power
        shifted = jnp.pad(least, ((0, 0), (width, 0)), constant_values=nothing)[:, :keys]
        least = jnp.minimum(
            least, shifted
        )  # what was said of blocks twice as long holds for both their halves
        for place in (start, end - width):
            at = jnp.where(level == power, place, keys)  # out of range: dropped
            least = least.at[batch, at].min(jnp.broadcast_to(values, at.shape), mode="drop")
    return least


def _overlap(start: Array, end: Array, begin: Array, stop: Array) -> Array:
    return jnp.maximum(jnp.minimum(end, stop) - jnp.maximum(start, begin), 0)


def _by_tile(rows: Array, rows_per_tile: int) -> Array:
    return rows.reshape(rows.shape[0], -1, rows_per_tile, rows.shape[2])
