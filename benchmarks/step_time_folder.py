"""What the two sides are given of a shape: a folder with the stage, the parameters and the batches."""

import dataclasses
import json
import pathlib
import pickle
from typing import Any

import numpy as np
from step_time_batches import Pair
from step_time_shapes import Shape

from mmjax.recipe.recipe import Stage
from mmjax.typing import Batch

BATCHES = 4
STD = 0.05  # of what is neither a matrix nor a scale


def write(
    shape: Shape, folder: pathlib.Path, attention: str | None = None, count: int = BATCHES
) -> list[Pair]:
    """Writes stage.pickle, jax_batches.npz, torch_batches.npz, spec.json and, where parameters are shared, parameters.npz.

    Args:
        attention: the implementation that mmjax prefers.

    Returns:
        the batches.
    """
    pairs = shape.batches(count)
    (folder / "stage.pickle").write_bytes(pickle.dumps((shape.stage, attention)))
    for number, side in enumerate(("jax", "torch")):
        stacked = {
            field.name: np.stack([np.asarray(getattr(pair[number], field.name)) for pair in pairs])
            for field in dataclasses.fields(Batch)
        }
        np.savez(folder / f"{side}_batches.npz", **stacked)
    (folder / "spec.json").write_text(json.dumps(spec(shape.stage)))
    if shape.compared:
        np.savez(folder / "parameters.npz", **initial(shape.stage))
    return pairs


def spec(stage: Stage) -> dict[str, Any]:
    """All that PyTorch is told of a stage: what its parts are, and how each of their parameters is trained."""
    from mmjax.models import parameters
    from mmjax.training.state import make_optimizer, weight_decay

    update = make_optimizer(stage)

    def settings(path: str, leaf: Any) -> dict[str, Any]:
        group = update.group(path)
        return {
            "trained": parameters.matches(path, stage.trainable),
            "rate": stage.optimizer.learning_rate * (group.learning_rate_scale if group else 1.0),
            "decay": weight_decay(path, leaf, stage.optimizer, group),
        }

    return {
        "model": dataclasses.asdict(stage.model),
        "optimizer": dataclasses.asdict(stage.optimizer),
        "layer_ranges": {
            part: [
                (layer_range.path, layer_range.size)
                for layer_range in getattr(stage.model, part).layer_ranges
            ]
            for part in ("vision", "decoder")
        },
        "parameters": {
            path: settings(path, leaf) for path, leaf in parameters.abstract(stage.model)[1].items()
        },
        "head_positions": stage.batch_size * stage.data.text_length,
    }


def initial(stage: Stage, seed: int = 0) -> dict[str, np.ndarray]:
    """Random parameters, float32, none of them what it would begin as: with scales of one and updates of zero, a side that takes one
    parameter for another, or leaves one out, would compute the same.
    """
    from mmjax.models import parameters

    rng = np.random.default_rng(seed)

    def drawn(path: str, shape: tuple[int, ...]) -> np.ndarray:
        own = path.rsplit("/", 1)[-1]
        values = rng.standard_normal(shape, np.float32)
        if own.startswith("scale"):
            return 1 + np.float32(0.1) * values
        return values * np.float32(shape[-2] ** -0.5 if own in ("kernel", "lora_a") else STD)

    return {
        path: drawn(path, leaf.shape)
        for path, leaf in sorted(parameters.abstract(stage.model)[1].items())
    }
