"""Where each scale of the resampler looks in a picture: the softmax weights of its queries, put back onto the grid of patches.

attention.npz holds `image` [h, w, 3] uint8, `name` (text), `windows` [scales] int (patches per side of a window), and for each scale i
`scale_i` [levels, queries per window, P, P] float32, P being patches per side: map q shows query q of every window in the place of the
window, so the weights of each window sum to 1. A model without queries has no scale.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax.greedy import Structure
from mmjax.models.config import ResamplerConfig
from mmjax.models.resampler import Resampler, Scale, partition
from mmjax.typing import Array, Float, Params, UInt8


@dataclass(frozen=True, eq=False)
class ScaleMaps:
    """Where the queries of one scale look.

    Attributes:
        window: patches per side of a window.
        weights: [levels, queries per window, P, P] float32, mean over the heads.
    """

    window: int
    weights: Float[np.ndarray, "levels Q P P"]


def compute(structure: Structure, params: Params, pixels: UInt8[np.ndarray, "h w 3"]) -> tuple[ScaleMaps, ...]:
    """The maps of each scale, coarse to fine; none if the connector has no queries."""

    def weights(params: Params, images: Array) -> list[Array]:
        model = structure.merge(params)
        if not isinstance(model.connector, Resampler):
            return []
        features = model.vision(images, model.config.connector.feature_layers)
        return [_scale_weights(scale, features) for scale in model.connector.scales]

    found = jax.jit(weights)(params, pixels[None])
    config = structure.merge(params).config.connector
    windows = config.windows if isinstance(config, ResamplerConfig) else ()
    return tuple(ScaleMaps(window, np.asarray(maps, np.float32)) for window, maps in zip(windows, found, strict=True))


def _scale_weights(scale: Scale, features: tuple[Float[Array, "1 S D"], ...]) -> Float[Array, "levels Q P P"]:
    """Runs the scale on one picture and keeps the weights of every level."""
    queries = scale.start(1, features[0].shape[1])
    maps = []
    for level, of_level in zip(scale.levels, features, strict=True):
        patches = partition(of_level, scale.window)
        maps.append(on_grid(level.weights(queries, patches).mean(axis=1), scale.window))
        queries = level(queries, patches)
    return jax.numpy.stack(maps)


def on_grid(weights: Float[Array, "W Q S"], window: int) -> Float[Array, "Q P P"]:
    """Weights over the window^2 patches of each window (windows and patches row by row) to maps over the whole grid."""
    windows, queries, _ = weights.shape
    side = round(windows**0.5)
    tiles = weights.reshape(side, side, queries, window, window)
    return tiles.transpose(2, 0, 3, 1, 4).reshape(queries, side * window, side * window)


def write(path: Path, name: str, pixels: UInt8[np.ndarray, "h w 3"], maps: Sequence[ScaleMaps]) -> None:
    """Writes attention.npz in one step."""
    arrays: dict[str, Any] = {f"scale_{index}": scale.weights for index, scale in enumerate(maps)}
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    np.savez_compressed(temporary, image=pixels, name=np.array(name), windows=np.array([scale.window for scale in maps], int), **arrays)
    temporary.replace(path)
