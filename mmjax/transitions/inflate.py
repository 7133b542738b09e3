"""Compound token scaling of Chain-of-Sight (arXiv:2407.15819, section 3): the resampler gets more scales, windows and queries, all copied.

Each new scale grows from one scale of the stage before, its parent. It takes a copy of the parent's weights. Its queries are the parent's,
repeated in window space as nearest-neighbour upsampling repeats pixels: all the windows that a parent's window splits into start with that
window's queries. Queries per window stay the same, so the queries grow by the square of the growth of the windows per side.
"""

from collections.abc import Iterator

import jax.numpy as jnp
from einops import repeat

from mmjax.models.config import VLMConfig
from mmjax.transitions.base import Difference, Transition
from mmjax.transitions.manifest import Entry
from mmjax.typing import Array, Float, Params

PART = "connector/"


def inflate(
    params: Params, old: VLMConfig, new: VLMConfig, key: Array
) -> tuple[Params, list[Entry]]:
    """Grows the connector out of that of the stage before; the connector says what grows out of what (`ConnectorConfig.growth`).

    Raises:
        InputError: the connector does not grow, or not like this.
    """
    del key  # nothing is random: the paper adds no noise
    growths = new.connector.growth(old.connector, old.vision, new.vision)
    grown = tuple(f"{PART}{path}" for path in new.connector.inflatable)
    result = {path: value for path, value in params.items() if not path.startswith(grown)}
    entries = []
    seen: set[str] = set()
    for growth in growths:
        prefix = PART + growth.source
        for source in sorted(path for path in params if path.startswith(prefix)):
            name = source.removeprefix(prefix)
            target = PART + growth.target + name
            tiled = growth.factor > 1 and name in growth.tiled
            if tiled:
                value = tile(params[source], growth.side, growth.factor)
            else:
                # The first child takes the parent's buffer over. Two leaves never share one: a training step consumes its state.
                value = (
                    jnp.array(params[source], copy=True)
                    if growth.source in seen
                    else params[source]
                )
            result[target] = value
            note = growth.tiled_note if tiled else growth.note
            entries.append(Entry.of(value, target, source, "tiled" if tiled else "copied", note))
        seen.add(growth.source)
    return result, entries


def tile(queries: Float[Array, "old D"], side: int, factor: int) -> Float[Array, "new D"]:
    """Queries [side^2 * t, D] in window-major order, each window's t repeated `factor` times along both axes of the grid of windows."""
    return repeat(queries, "(i j t) D -> (i a j b t) D", i=side, j=side, a=factor, b=factor)


def _hints(difference: Difference) -> Iterator[str]:
    grown = tuple(f"{PART}{path}" for path in difference.model.connector.inflatable)
    if "inflate" not in difference.names and any(
        path.startswith(grown) for path in difference.paths
    ):
        yield "parameters of the connector change in number or shape: 'inflate' grows them out of those before"


TRANSITIONS = (Transition("inflate", inflate, _hints),)
