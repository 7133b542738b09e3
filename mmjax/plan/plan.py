"""What a recipe will cost, from shapes alone: nothing is allocated and no accelerator is touched.

Parameters, state and FLOPs are exact. Activations are an estimate, by the formula of `activation_bytes`; so is the time of a step, at a
stated utilisation.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import cast

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh

from mmjax.distributed import mesh as mesh_axes
from mmjax.distributed import mesh as sharding
from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import VLMConfig
from mmjax.recipe.recipe import PARTS, Recipe, Stage
from mmjax.recipe.schema import choose, suggestion
from mmjax.training import state as training_state
from mmjax.training.flops import StepFlops, step_flops

ASSUMED_UTILISATION = 0.4


@dataclasses.dataclass(frozen=True)
class Device:
    """An accelerator: bytes of memory, and dense bfloat16 FLOP/s (vendors' data sheets)."""

    memory: float
    flops: float


DEVICES = {
    "a100": Device(80e9, 312e12),
    "h100": Device(80e9, 989e12),
    "h200": Device(141e9, 989e12),
    "v5e": Device(16 * 2**30, 197e12),
    "v5p": Device(95 * 2**30, 459e12),
    "v6e": Device(32 * 2**30, 918e12),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Some number of equal devices."""

    name: str
    device: Device
    count: int

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """Of "h100:8" or "v5p:4x4x4". Raises InputError for anything else."""
        kind, _, shape = text.partition(":")
        if ":" not in text:
            form = "a number of devices is expected after a colon, such as h100:8"
            raise InputError(f"--topology={text}: {form}. {suggestion(kind, DEVICES)}")
        device = choose(kind.lower(), DEVICES, "accelerator")
        sides = shape.split("x")
        if not all(side.isdecimal() and int(side) > 0 for side in sides):
            raise InputError(
                f"--topology={text}: a number of devices is expected after the colon, such as {kind}:8 or v5p:4x4x4."
            )
        return cls(text, device, math.prod(map(int, sides)))


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.optimizer + self.activations


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """What one stage costs.

    Attributes:
        parameters, trained: how many, by part.
        flops: of a step.
        share: FLOPs of a row over those of the same row, with the same text, on the model of the last stage.
        memory: of one device.
    """

    stage: Stage
    parameters: Mapping[str, int]
    trained: Mapping[str, int]
    flops: StepFlops
    share: float
    memory: Memory

    @property
    def row_length(self) -> int:
        """T: tokens per row."""
        return (
            self.stage.data.text_length
            + self.stage.data.images_per_row * self.stage.model.visual_tokens
        )


def make_plan(recipe: Recipe, topology: Topology | None = None) -> list[StagePlan]:
    """The plan of each stage, on one device or on a topology.

    Raises:
        InputError: the stages cannot be laid out on the topology.
    """
    last = list(recipe.stages.values())[-1].model
    sizes = (
        sharding.axis_sizes(recipe.mesh, topology.count)
        if topology
        else dict.fromkeys(sharding.MESH_AXES, 1)
    )
    return [_plan_stage(stage, last, sizes) for stage in recipe.stages.values()]


def _plan_stage(stage: Stage, last: VLMConfig, sizes: Mapping[str, int]) -> StagePlan:
    sharding.check(sizes, stage)
    shapes = parameters.abstract(stage.model)[1]
    trained = {
        path: shape for path, shape in shapes.items() if parameters.matches(path, stage.trainable)
    }
    flops = step_flops(stage.model, stage)
    return StagePlan(
        stage=stage,
        parameters=_by_part(shapes),
        trained=_by_part(trained),
        flops=flops,
        share=flops.row.total / step_flops(last, stage).row.total,
        memory=_memory(stage, shapes, sizes),
    )


def _by_part(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, int]:
    counts = dict.fromkeys((*PARTS, "lora"), 0)
    for path, shape in shapes.items():
        part = "lora" if path.rsplit("/", 1)[-1].startswith("lora_") else path.split("/")[0]
        counts[part] += math.prod(shape.shape)
    return counts


def _memory(
    stage: Stage, shapes: Mapping[str, jax.ShapeDtypeStruct], sizes: Mapping[str, int]
) -> Memory:
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(
        functools.partial(training_state.create, stage=stage), dict(shapes), key=key
    )
    mesh = AbstractMesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
    )
    # Shardings over a mesh without devices are as good as over one with them, for shapes.
    places, _ = mesh_axes.parameter_shardings(
        shapes, parameters.logical_axes(stage.model), cast(Mesh, mesh)
    )

    def size(values: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        return float(
            sum(
                math.prod(places[path].shard_shape(value.shape)) * value.dtype.itemsize
                for path, value in values.items()
            )
        )

    trainable = size(state.trainable)
    moments = size(state.optimizer.mu) + size(state.optimizer.nu)
    rows = stage.batch_size / stage.gradient_accumulation_steps / (sizes["data"] * sizes["fsdp"])
    return Memory(
        trainable + size(state.frozen), trainable, moments, rows * activation_bytes(stage)
    )


def activation_bytes(stage: Stage) -> float:
    """Estimated bytes that a row keeps for the backward pass.

    For each token and block, in elements of the compute dtype (D width, F MLP width, A heads x head dim, N heads, S keys):

        remat none   encoder 8 D + 2 F + W        decoder 4 D + 2 A + 2 A_kv + 3 F + W
        remat dots   encoder 6 D + F              decoder 3 D + 2 A + 2 A_kv + 2 F
        remat full   D, and one block as under "none"

    W = N S attention weights: in float32 for the gradient of the softmax, and once more in the compute dtype if that is another. The
    block at work holds its scores and their gradient in float32 beside them, 2 N S.

    An encoder that is not trained keeps one block's values only. The connector counts 10 D per query and 2 D per patch, for each scale and
    level; the head three float32 values per text position and vocabulary entry.

    A floor rather than a forecast: for the default recipe on a CPU, XLA reports 1.8 times this (111 MB and 589 MB for the two stages).
    """
    model, data = stage.model, stage.data
    paths = [
        path for path in parameters.abstract(model)[1] if parameters.matches(path, stage.trainable)
    ]
    images, tokens = (
        data.images_per_row,
        data.text_length + data.images_per_row * model.visual_tokens,
    )
    seen = any(path.startswith("vision/") for path in paths)
    read = seen or any(path.startswith("connector/") for path in paths)
    vision = (
        _encoder_bytes(model, seen) * images * (model.vision.patches + model.vision.class_token)
    )
    decoder = _decoder_bytes(model, tokens) * tokens
    connector = (
        model.connector.activation_elements(model.vision, model.decoder.width)
        * images
        * jnp.dtype(model.compute_dtype).itemsize
        if read
        else 0.0
    )
    logits = 3 * 4 * data.text_length * model.decoder.vocabulary
    return vision + connector + decoder + logits


def _encoder_bytes(model: VLMConfig, trained: bool) -> float:
    """Per token."""
    c = model.vision
    elements = {
        "none": 8 * c.width + 2 * c.mlp_width,
        "dots": 6 * c.width + c.mlp_width,
        "full": c.width,
    }
    return _blocks(model, c.layers, elements, c.heads * (c.patches + c.class_token), trained)


def _decoder_bytes(model: VLMConfig, tokens: int) -> float:
    """Per token."""
    c = model.decoder
    projected = 2 * (c.heads + c.kv_heads) * c.head_dim
    elements = {
        "none": 4 * c.width + projected + 3 * c.mlp_width,
        "dots": 3 * c.width + projected + 2 * c.mlp_width,
        "full": c.width,
    }
    return _blocks(model, c.depth, elements, c.heads * tokens, True)


def _blocks(
    model: VLMConfig, layers: int, elements: Mapping[str, int], weights: int, trained: bool
) -> float:
    """Bytes per token of a stack: what is kept by block, and what the block at work needs beside it."""
    item = jnp.dtype(model.compute_dtype).itemsize
    whole = elements["none"] * item + weights * (4 if item == 4 else 4 + item)
    kept = whole if model.remat == "none" else elements[model.remat] * item
    recomputed = whole if model.remat != "none" or not trained else 0
    return trained * layers * kept + recomputed + 2 * 4 * weights
