"""What `step_time.py` measures: by name a stage of training and its batches, at full size on a GPU and scaled down on a CPU.

All but the default recipe's shapes need no config file and no data, so that they run where only jax, flax and optax are.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import step_time_batches as made
from step_time_stages import cos_stage, packed_stage, surrogate_stage, text_stage

from mmjax.recipe.recipe import Stage

DEFAULT = ("default_pretrain", "default_finetune")
BIG = (
    "llm_1b",
    "cos_pretrain_80",
    "cos_finetune_1296",
    "packed",
    "surrogate",
    "llm_8b-slice",
    "cos_pretrain_336",
    "cos_finetune_336",
    "cos_pretrain_48",
    "cos_pretrain_32",
)
NAMES = (*DEFAULT, *BIG)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A stage and its batches.

    Attributes:
        batches: (count) -> that many pairs of batches, of mmjax and of PyTorch, with the same samples; usually one batch twice.
        scaled: what is smaller than in the shape of this name on a GPU: {"model.decoder.width": (4096, 256)}. Empty: nothing.
        compared: whether both sides begin with the same parameters, which a file carries, and their losses are compared. Otherwise both
            draw their own.
    """

    name: str
    stage: Stage
    batches: Callable[[int], list[made.Pair]]
    scaled: dict[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    compared: bool = True

    @property
    def title(self) -> str:
        """What it is, in a line."""
        model, stage = self.stage.model, self.stage
        images = stage.data.images_per_row
        row = f"{stage.data.text_length} text tokens"
        if images:
            row = f"{row} and {images * model.visual_tokens} visual tokens of {model.vision.image_size} pixels"
        trained = ", ".join(stage.trainable)
        remat = "" if model.remat == "none" else f", remat {model.remat}"
        blocks = f"{model.decoder.depth} blocks of {model.decoder.width}"
        return f"{stage.batch_size} rows of {row}, {blocks}, {model.compute_dtype}, trains {trained}{remat}"


def names(on_gpu: bool) -> tuple[str, ...]:
    """The shapes that are measured where none is named."""
    return BIG if on_gpu else NAMES


def shape(name: str, *, on_gpu: bool, memory: float = 0.0) -> Shape:
    """A shape by its name.

    Args:
        memory: bytes that a side may take on the GPU, which decide the layers of a slice.

    Raises:
        ValueError: there is no such shape.
    """
    if name in DEFAULT:
        return default_shape(name)
    if name not in BIG:
        raise ValueError(f"there is no shape {name!r}; there are {', '.join(NAMES)}")
    full = _stage(name, True, memory)
    if on_gpu:
        return Shape(name, full, made.maker(name, full), compared=False)
    small = _stage(name, False, 0.0)
    return Shape(name, small, made.maker(name, small), scaled=differences(full, small))


def _stage(name: str, full: bool, memory: float) -> Stage:
    kind, _, size = name.partition("_")
    match kind:
        case "cos":
            part, tokens = size.split("_")
            return cos_stage(part, int(tokens), full)
        case "llm":
            return text_stage(size, full, memory)
        case "packed":
            return packed_stage(full)
    return surrogate_stage(full)


def default_shape(name: str) -> Shape:
    """A stage of configs/cos.py with rows that its data loader packs. Needs all that mmjax needs."""
    recipe_stage, pairs = made.default_recipe(name.removeprefix("default_"))
    return Shape(name, recipe_stage, pairs)


def differences(full: Stage, small: Stage) -> dict[str, tuple[Any, Any]]:
    """Settings of a stage that differ, by their path."""
    flat = dict(_flat(dataclasses.asdict(small)))
    return {
        path: (value, flat.get(path))
        for path, value in _flat(dataclasses.asdict(full))
        if flat.get(path) != value
    }


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def said(scaled: dict[str, tuple[Any, Any]]) -> str:
    """Differences as text, shortly: "decoder.width 4096 -> 256"."""
    return ", ".join(
        f"{path.removeprefix('model.')} {full} -> {small}" for path, (full, small) in scaled.items()
    )
