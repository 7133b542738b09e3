"""Masks as intervals: causal rows, packed segments, image prefixes and windows are all "this query row sees keys [start, end)"."""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.typing import PADDING_SEGMENT, AnyArray, Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IntervalMask:
    """Query row i sees the keys [start, end) and, where a prefix is given, [prefix_start, prefix_end) as well.

    The two intervals of a row do not overlap. An empty interval has start == end; a row that sees nothing attends to nothing and yields
    zeros.

    Attributes:
        start, end: [B, T] int32.
        prefix_start, prefix_end: [B, T] int32, or both None.
    """

    start: Int[Array, "B T"]
    end: Int[Array, "B T"]
    prefix_start: Int[Array, "B T"] | None = None
    prefix_end: Int[Array, "B T"] | None = None

    @classmethod
    def full(cls, batch: int, rows: int, keys: int) -> "IntervalMask":
        """Every row sees every key."""
        return cls(jnp.zeros((batch, rows), jnp.int32), jnp.full((batch, rows), keys, jnp.int32))

    @property
    def intervals(self) -> tuple[tuple[Int[Array, "B T"], Int[Array, "B T"]], ...]:
        """The one or two intervals of each row, as (start, end)."""
        if self.prefix_start is None or self.prefix_end is None:
            return ((self.start, self.end),)
        return (self.start, self.end), (self.prefix_start, self.prefix_end)

    @classmethod
    def from_segments(cls, segments: Int[AnyArray, "B T"], prefixes: Int[AnyArray, "B T"] | None = None) -> "IntervalMask":
        """Causal within a segment; a row also sees the whole of the segment that `prefixes` names (0: none). Padding sees nothing.

        Segments are 1, 2, ... in order along a row, then 0 (see `Batch`), so a segment's interval is found by binary search.
        """
        length = segments.shape[1]
        last = jnp.iinfo(segments.dtype).max
        ordered = jnp.where(segments == PADDING_SEGMENT, last, segments)
        find = jax.vmap(lambda row, wanted, side: jnp.searchsorted(row, wanted, side=side), in_axes=(0, 0, None))
        visible = segments != PADDING_SEGMENT
        start = find(ordered, ordered, "left").astype(jnp.int32)
        end = jnp.where(visible, jnp.arange(1, length + 1, dtype=jnp.int32), start)
        if prefixes is None:
            return cls(start, end)
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
        seen = (self.start[..., None] <= position) & (position < self.end[..., None])
        if self.prefix_start is None or self.prefix_end is None:
            return seen
        return seen | ((self.prefix_start[..., None] <= position) & (position < self.prefix_end[..., None]))
