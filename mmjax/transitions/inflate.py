"""Compound token scaling of Chain-of-Sight (arXiv:2407.15819, section 3): the resampler gets more scales, windows and queries, all copied.

Each new scale grows from one scale of the stage before, its parent. It takes a copy of the parent's weights. Its queries are the parent's,
repeated in window space as nearest-neighbour upsampling repeats pixels: all the windows that a parent's window splits into start with that
window's queries. Queries per window stay the same, so the queries grow by the square of the growth of the windows per side.
"""

import dataclasses
import math

import jax.numpy as jnp

from mmjax.errors import InputError
from mmjax.models.config import ResamplerConfig, VLMConfig
from mmjax.transitions.manifest import Entry
from mmjax.typing import Array, Float, Params

SCALES = "connector/scales/"


@dataclasses.dataclass(frozen=True)
class Growth:
    """How a scale grows from its parent.

    Attributes:
        parent: index of the scale of the stage before.
        side: windows per side of the parent.
        factor: windows per side of the new scale for each of the parent's.
    """

    parent: int
    side: int
    factor: int

    @property
    def note(self) -> str:
        """Of the queries, for the manifest."""
        grown = self.side * self.factor
        return f"from scale {self.parent}, {self.side} x {self.side} windows repeated to {grown} x {grown}"


def inflate(params: Params, old: VLMConfig, new: VLMConfig, key: Array) -> tuple[Params, list[Entry]]:
    """Grows the scales of the resampler; `new.connector.parents` names the parent of each, and if it is empty, scale i grows from scale i.

    Raises:
        InputError: a connector is no resampler, or a scale cannot grow from its parent (see `growths`).
    """
    del key  # nothing is random: the paper adds no noise
    result = {path: value for path, value in params.items() if not path.startswith(SCALES)}
    entries = []
    seen: set[int] = set()
    for index, growth in enumerate(growths(old, new)):
        prefix = f"{SCALES}{growth.parent}/"
        for source in sorted(path for path in params if path.startswith(prefix)):
            target = f"{SCALES}{index}/{source.removeprefix(prefix)}"
            tiled = growth.factor > 1 and source == f"{prefix}queries"
            if tiled:
                value = tile(params[source], growth.side, growth.factor)
            else:
                # The first child takes the parent's buffer over. Two leaves never share one: a training step consumes its state.
                value = jnp.array(params[source], copy=True) if growth.parent in seen else params[source]
            result[target] = value
            entries.append(
                Entry.of(value, target, source, "tiled" if tiled else "copied", growth.note if tiled else f"from scale {growth.parent}")
            )
        seen.add(growth.parent)
    return result, entries


def tile(queries: Float[Array, "old D"], side: int, factor: int) -> Float[Array, "new D"]:
    """Queries [side^2 * t, D] in window-major order, each window's t repeated `factor` times along both axes of the grid of windows."""
    grid = queries.reshape(side, side, -1, queries.shape[-1])
    return grid.repeat(factor, axis=0).repeat(factor, axis=1).reshape(-1, queries.shape[-1])


def growths(old: VLMConfig, new: VLMConfig) -> tuple[Growth, ...]:
    """How every scale of `new` grows from one of `old`.

    Raises:
        InputError: a connector is no resampler; `parents` does not name one scale of the stage before for each scale; windows do not tile
            their grid, or queries do not divide over them; the queries grow by anything but 1 or the square of a whole number; or the
            windows per side do not grow by its root.
    """
    for model, place in ((old, "of the stage before"), (new, "of this stage")):
        if not isinstance(model.connector, ResamplerConfig):
            raise InputError(f"inflate grows a resampler, but the connector {place} is of kind {model.connector.kind!r}.")
        if len(model.connector.queries) != len(model.connector.windows):
            raise InputError(
                f"The connector {place} has {len(model.connector.windows)} windows and {len(model.connector.queries)} entries of queries; "
                "there must be one of each for every scale."
            )
    assert isinstance(new.connector, ResamplerConfig)
    return tuple(_growth(index, parent, old, new) for index, parent in enumerate(_parents(old, new)))


def _parents(old: VLMConfig, new: VLMConfig) -> tuple[int, ...]:
    before, after = old.connector, new.connector
    assert isinstance(before, ResamplerConfig) and isinstance(after, ResamplerConfig)
    scales = len(after.windows)
    if not after.parents:
        if len(before.windows) != scales:
            example = tuple(max(0, index - scales + len(before.windows)) for index in range(scales))
            raise InputError(
                f"connector.parents is empty, so scale i would grow from scale i, but there were {len(before.windows)} scales and now "
                f"there are {scales}; name the parent of each, such as {example}."
            )
        return tuple(range(scales))
    if len(after.parents) != scales:
        raise InputError(f"connector.parents names {len(after.parents)} parents for {scales} scales; each scale has one.")
    for parent in after.parents:
        if not 0 <= parent < len(before.windows):
            raise InputError(f"connector.parents names scale {parent}, but the stage before has scales 0 to {len(before.windows) - 1}.")
    return after.parents


def _growth(index: int, parent: int, old: VLMConfig, new: VLMConfig) -> Growth:
    before, after = old.connector, new.connector
    assert isinstance(before, ResamplerConfig) and isinstance(after, ResamplerConfig)
    old_side, new_side = windows_per_side(old, parent), windows_per_side(new, index)
    old_queries, new_queries = before.queries[parent], after.queries[index]
    factor = math.isqrt(new_queries // old_queries)
    if factor**2 * old_queries != new_queries:
        raise InputError(
            f"Scale {index} cannot grow from {old_queries} to {new_queries} queries, a factor of {new_queries / old_queries:g}: it must be "
            "1 or the square of a whole number, because a window's queries are repeated along both sides; "
            f"{_nearest(old_queries, new_queries)} would do."
        )
    if new_side != old_side * factor:
        needed = old_side * factor
        fitting = f", which is windows of {new.vision.grid // needed}" if new.vision.grid % needed == 0 else ""
        raise InputError(
            f"Scale {index} has {new_side} x {new_side} windows (of {after.windows[index]} on a grid of {new.vision.grid}), but "
            f"{factor**2} times the queries of scale {parent}, with its {old_side} x {old_side}, go with {needed} x {needed}{fitting}."
        )
    return Growth(parent, old_side, factor)


def _nearest(old_queries: int, wanted: int) -> str:
    root = max(1, math.isqrt(wanted // old_queries))
    return f"{root**2 * old_queries} or {(root + 1) ** 2 * old_queries}"


def windows_per_side(model: VLMConfig, scale: int) -> int:
    """Windows per side of a scale of the resampler.

    Raises:
        InputError: the windows do not tile the grid of patches, or the queries do not divide over them.
    """
    connector, grid = model.connector, model.vision.grid
    assert isinstance(connector, ResamplerConfig)
    window, queries = connector.windows[scale], connector.queries[scale]
    if window < 1 or grid % window:
        raise InputError(f"Scale {scale}: windows of {window} x {window} patches do not tile the grid of {grid} x {grid}.")
    side = grid // window
    if queries < 1 or queries % side**2:
        raise InputError(f"Scale {scale}: {queries} queries do not divide evenly over {side} x {side} windows.")
    return side
