"""Where the queries of a connector look in an image: their softmax weights, put back onto the grid of patches.

attention.npz holds `image` [h, w, 3] uint8, `name` (text), `windows` [scales] int (patches per side of a window), and for each scale i
`scale_i` [blocks, queries per window, P, P] float32, P being patches per side: map q shows query q of every window in the place of the
window, so the weights of each window sum to 1. A model without queries has no scale.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax.inference.decode import VLMDef
from mmjax.models.connectors.base import AttentionMap
from mmjax.typing import Array, Params, UInt8


def compute(
    model_def: VLMDef, params: Params, pixels: UInt8[np.ndarray, "h w 3"]
) -> list[AttentionMap]:
    """The maps of each scale, coarse to fine; none if the connector has no queries."""
    windows: list[int] = []

    def weights(params: Params, images: Array) -> list[Array]:
        model = model_def.merge(params)
        maps = model.config.connector.attention_maps(model.connector, model.features(images))
        windows.extend(found.window for found in maps)
        return [found.weights for found in maps]

    found = jax.jit(weights)(params, pixels[None])
    return [
        AttentionMap(window, np.asarray(maps, np.float32))
        for window, maps in zip(windows, found, strict=True)
    ]


def write(
    path: Path, name: str, pixels: UInt8[np.ndarray, "h w 3"], maps: Sequence[AttentionMap]
) -> None:
    """Writes attention.npz in one step."""
    arrays: dict[str, Any] = {f"scale_{index}": scale.weights for index, scale in enumerate(maps)}
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    np.savez_compressed(
        temporary,
        image=pixels,
        name=np.array(name),
        windows=np.array([scale.window for scale in maps], int),
        **arrays,
    )
    temporary.replace(path)
