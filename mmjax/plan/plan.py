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

from mmjax.base.devices import DEVICES, Device, plain_name
from mmjax.distributed.mesh import MESH_AXES, axis_sizes, check_layout, parameter_shardings
from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import VLMConfig
from mmjax.recipe.recipe import PARTS, Recipe, Stage
from mmjax.recipe.schema import choose, suggestion
from mmjax.training import state as training_state
from mmjax.training.flops import StepFlops, step_flops

ASSUMED_UTILISATION = 0.4


@dataclasses.dataclass(frozen=True)
class Topology:
    """Some number of equal devices."""

    name: str
    device: Device
    count: int

    @property
    def hardware(self) -> str:
        """In words: "8 x h100"."""
        return f"{self.count} x {self.name.partition(':')[0]}"

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """Reads "h100:8" or "v5p:4x4x4"; the names are those of `DEVICES`. Raises InputError for anything else."""
        kind, _, shape = text.partition(":")
        form = "--topology must be an accelerator, a colon and a number of devices, such as h100:8 or v5p:4x4x4"
        if ":" not in text:
            raise InputError(f"{form}; it is {text}. {suggestion(kind, DEVICES)}")
        device = choose(plain_name(kind), DEVICES, "accelerator")
        sides = shape.split("x")
        if not all(side.isdecimal() and int(side) > 0 for side in sides):
            raise InputError(f"{form}; it is {text}.")
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
    sizes = axis_sizes(recipe.mesh, topology.count) if topology else dict.fromkeys(MESH_AXES, 1)
    stages = list(recipe.stages.values())
    return [plan_stage(stage, stages[-1].model, sizes) for stage in stages]


def plan_stage(stage: Stage, last: VLMConfig, sizes: Mapping[str, int]) -> StagePlan:
    """The plan of one stage.

    Args:
        last: the model of the last stage, with which its FLOPs are compared.
        sizes: devices along each mesh axis.

    Raises:
        InputError: it cannot be laid out on such a mesh.
    """
    check_layout(sizes, stage)
    shapes = parameters.abstract(stage.model)[1]
    counts = dict.fromkeys((*PARTS, "lora"), 0)
    trained = dict(counts)
    for path, shape in shapes.items():
        part = "lora" if path.rsplit("/", 1)[-1].startswith("lora_") else path.split("/")[0]
        counts[part] += math.prod(shape.shape)
        if parameters.matches(path, stage.trainable):
            trained[part] += math.prod(shape.shape)
    flops = step_flops(stage.model, stage)
    share = flops.row.total / step_flops(last, stage).row.total
    return StagePlan(stage, counts, trained, flops, share, device_memory(stage, shapes, sizes))


def device_memory(
    stage: Stage, shapes: Mapping[str, jax.ShapeDtypeStruct], sizes: Mapping[str, int]
) -> Memory:
    """What a stage keeps on one device.

    Args:
        shapes: of the parameters by path.
        sizes: devices along each mesh axis.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(
        functools.partial(training_state.create, stage=stage), dict(shapes), key=key
    )
    # Shardings over a mesh without devices are as good as over one with them, for shapes.
    axis_types = (AxisType.Auto,) * len(sizes)
    mesh = cast(Mesh, AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=axis_types))
    places, _ = parameter_shardings(shapes, parameters.logical_axes(stage.model), mesh)

    def size(values: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        shards = {path: places[path].shard_shape(value.shape) for path, value in values.items()}
        return float(sum(math.prod(shards[path]) * values[path].dtype.itemsize for path in values))

    trainable = size(state.trainable)
    rows = stage.batch_size / stage.gradient_accumulation_steps / (sizes["data"] * sizes["fsdp"])
    return Memory(
        parameters=trainable + size(state.frozen),
        gradients=trainable,
        optimizer=size(state.optimizer.mu) + size(state.optimizer.nu),
        activations=rows * activation_bytes(stage),
    )


def activation_bytes(stage: Stage) -> float:
    """Estimated bytes that a row keeps for the backward pass.

    For each token and block, in elements of the compute dtype (D width, F MLP width, A heads x head dim, N heads, S keys):

        remat none   encoder 8 D + 2 F + W        decoder 4 D + 2 A + 2 A_kv + 3 F + W
        remat dots   encoder 6 D + F              decoder 3 D + 2 A + 2 A_kv + 2 F
        remat full   D, and one block as under "none"

    W = N S attention weights: in float32 for the gradient of the softmax, and once more in the compute dtype if that is another. The
    block at work holds its scores and their gradient in float32 beside them, 2 N S.

    An encoder that is not trained keeps one block's values only. What the connector keeps, it says itself; the head keeps three float32
    values per text position and vocabulary entry.

    A lower bound rather than a forecast: for the default recipe on a CPU, XLA reports 1.8 times this (111 MB and 589 MB for the two
    stages).
    """
    model, data, images = stage.model, stage.data, stage.data.images_per_row
    item = jnp.dtype(model.compute_dtype).itemsize
    paths = [
        path for path in parameters.abstract(model)[1] if parameters.matches(path, stage.trainable)
    ]
    vision_trained = any(path.startswith("vision/") for path in paths)

    def stack(layers: int, elements: Mapping[str, int], weights: int, trained: bool) -> float:
        """Bytes per token of equal blocks: what each keeps, and what the block at work needs beside it."""
        whole = elements["none"] * item + weights * (4 if item == 4 else 4 + item)
        kept = whole if model.remat == "none" else elements[model.remat] * item
        recomputed = whole if model.remat != "none" or not trained else 0
        return trained * layers * kept + recomputed + 2 * 4 * weights

    vision = model.vision
    patches = vision.patches + vision.class_token
    elements = {
        "none": 8 * vision.width + 2 * vision.mlp_width,
        "dots": 6 * vision.width + vision.mlp_width,
        "full": vision.width,
    }
    encoded = (
        images * patches * stack(vision.layers, elements, vision.heads * patches, vision_trained)
    )

    connected = 0.0
    if vision_trained or any(path.startswith("connector/") for path in paths):
        connected = images * item * model.connector.activation_elements(vision, model.decoder.width)

    decoder = model.decoder
    assert decoder.vocabulary is not None  # `plan.table` and `runs` read it first
    tokens = data.text_length + images * model.visual_tokens
    projected = 2 * (decoder.heads + decoder.kv_heads) * decoder.head_dim
    elements = {
        "none": 4 * decoder.width + projected + 3 * decoder.mlp_width,
        "dots": 3 * decoder.width + projected + 2 * decoder.mlp_width,
        "full": decoder.width,
    }
    decoded = tokens * stack(decoder.depth, elements, decoder.heads * tokens, True)
    logits = 3 * 4 * data.text_length * decoder.vocabulary
    return encoded + connected + decoded + logits
