"""Masks as intervals: causal rows, packed segments, image prefixes and windows are all "this query row sees keys [start, end)"."""

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
        end = jnp.broadcast_to(jnp.arange(first - rows + 1, first + 1, dtype=jnp.int32), (batch, rows))
        return cls(jnp.zeros_like(end), jnp.maximum(end, 0), form="causal" if first == rows else "intervals")

    @classmethod
    def from_media(cls, media: Int[AnyArray, "B T"], tokens: int) -> "IntervalMask":
        """Text row i sees the `tokens` keys of one picture, number media[i] counted from 1, and nothing where that is 0 (gated
        cross-attention to the last picture before a text: Flamingo, arXiv:2204.14198, section 2.3)."""
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
        cls, segments: Int[AnyArray, "B T"], prefixes: Int[AnyArray, "B T"] | None = None, blocks: Int[AnyArray, "B T"] | None = None
    ) -> "IntervalMask":
        """Causal within a segment. Padding sees nothing.

        Args:
            segments: 1, 2, ... in order along a row, then 0 (see `Batch`), so a segment's interval is found by binary search.
            prefixes: a row also sees the whole of the segment that this names (0: none).
            blocks: rows that follow each other with the same number, not 0, see each other in both directions, as those of a picture may.
                A block lies within a segment.
        """
        length = segments.shape[1]
        last = jnp.iinfo(segments.dtype).max
        ordered = jnp.where(segments == PADDING_SEGMENT, last, segments)
        find = jax.vmap(lambda row, wanted, side: jnp.searchsorted(row, wanted, side=side), in_axes=(0, 0, None))
        visible = segments != PADDING_SEGMENT
        start = find(ordered, ordered, "left").astype(jnp.int32)
        end = jnp.arange(1, length + 1, dtype=jnp.int32)
        end = jnp.where(visible, end if blocks is None else jnp.where(blocks > 0, _run_ends(blocks), end), start)
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
        return IntervalMask(start, self.end, jnp.maximum(self.prefix_start, self.prefix_end - left), self.prefix_end)

    def dense(self, keys: int) -> Bool[Array, "B T S"]:
        """The mask as booleans, for implementations that hold the scores."""
        position = jnp.arange(keys, dtype=jnp.int32)
        seen = [(start[..., None] <= position) & (position < end[..., None]) for start, end in self.intervals]
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
