"""What a recipe will cost, from shapes alone: nothing is allocated and no accelerator is touched.

Parameters, state and FLOPs are exact. Activations are an estimate, by the formula of `activation_bytes`; so is the time of a step, at a stated
utilisation. The share of the full-token cost compares a step with the same step through a plain resampler that makes as many visual tokens as
the recipe ever uses.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from rich.console import Console
from rich.table import Table

from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import ResamplerConfig, VLMConfig
from mmjax.recipe import Recipe, Stage
from mmjax.schema import choose
from mmjax.training import sharding
from mmjax.training import state as training_state
from mmjax.training.flops import StepFlops, step_flops

ASSUMED_UTILISATION = 0.4
PARTS = ("vision", "connector", "decoder")


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
        device = choose(kind.lower(), DEVICES, "accelerator")
        sides = shape.split("x")
        if not all(side.isdecimal() and int(side) > 0 for side in sides):
            raise InputError(f"--topology={text}: a number of devices is expected after the colon, such as {kind}:8 or v5p:4x4x4.")
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
        share: FLOPs of a row, relative to a row with the most visual tokens of any stage (`full_token_flops`).
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
        return self.stage.data.text_length + self.stage.data.images_per_row * self.stage.model.visual_tokens


def make_plan(recipe: Recipe, topology: Topology | None = None) -> list[StagePlan]:
    """The plan of each stage, on one device or on a topology.

    Raises:
        InputError: the stages cannot be laid out on the topology.
    """
    most = max(stage.model.visual_tokens for stage in recipe.stages.values())
    sizes = sharding.axis_sizes(recipe.mesh, topology.count) if topology else dict.fromkeys(sharding.MESH_AXES, 1)
    return [_plan_stage(stage, most, sizes) for stage in recipe.stages.values()]


def _plan_stage(stage: Stage, most: int, sizes: Mapping[str, int]) -> StagePlan:
    sharding.check(sizes, stage)
    shapes = parameters.abstract(stage.model)[1]
    trained = {path: shape for path, shape in shapes.items() if parameters.matches(path, stage.trainable)}
    flops = step_flops(stage.model, stage)
    full = full_token_flops(stage, most)
    return StagePlan(
        stage=stage,
        parameters=_by_part(shapes),
        trained=_by_part(trained),
        flops=flops,
        share=flops.row.total / full,
        memory=_memory(stage, shapes, sizes),
    )


def full_token_flops(stage: Stage, tokens: int) -> float:
    """FLOPs of a row if one window over the grid made `tokens` visual tokens of each picture (the paper's plain resampler)."""
    connector = stage.model.connector
    if not isinstance(connector, ResamplerConfig) or stage.model.visual_tokens == tokens:
        return step_flops(stage.model, stage).row.total
    plain = dataclasses.replace(connector, windows=(stage.model.vision.grid,), queries=(tokens,), parents=())
    model = dataclasses.replace(stage.model, connector=plain)
    return step_flops(model, dataclasses.replace(stage, model=model)).row.total


def _by_part(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, int]:
    counts = dict.fromkeys((*PARTS, "lora"), 0)
    for path, shape in shapes.items():
        part = "lora" if path.rsplit("/", 1)[-1].startswith("lora_") else path.split("/")[0]
        counts[part] += math.prod(shape.shape)
    return counts


def _memory(stage: Stage, shapes: Mapping[str, jax.ShapeDtypeStruct], sizes: Mapping[str, int]) -> Memory:
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(functools.partial(training_state.create, stage=stage), dict(shapes), key=key)
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    places, _ = sharding.parameter_shardings(shapes, parameters.logical_axes(stage.model), mesh)

    def size(values: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        return float(sum(math.prod(places[path].shard_shape(value.shape)) * value.dtype.itemsize for path, value in values.items()))

    trainable = size(state.trainable)
    moments = size(state.optimizer.mu) + size(state.optimizer.nu)
    rows = stage.batch_size / stage.micro_batches / (sizes["data"] * sizes["fsdp"])
    return Memory(trainable + size(state.frozen), trainable, moments, rows * activation_bytes(stage))


def activation_bytes(stage: Stage) -> float:
    """Estimated bytes that a row keeps for the backward pass.

    For each token and block, in elements of the compute dtype (D width, F MLP width, A heads x head dim, N heads, S keys):

        remat none   encoder 8 D + 2 F + N S      decoder 4 D + 2 A + 2 A_kv + 3 F + N S
        remat dots   encoder 6 D + F              decoder 3 D + 2 A + 2 A_kv + 2 F
        remat full   D, and one block as under "none"

    An encoder that is not trained keeps one block's values only. The connector counts 10 D per query and 2 D per patch, for each scale and
    level; the head three float32 values per text position and vocabulary entry.
    """
    model, data = stage.model, stage.data
    paths = [path for path in parameters.abstract(model)[1] if parameters.matches(path, stage.trainable)]
    images, tokens = data.images_per_row, data.text_length + data.images_per_row * model.visual_tokens
    seen = any(path.startswith("vision/") for path in paths)
    read = seen or any(path.startswith("connector/") for path in paths)
    vision = _encoder_elements(model, seen) * images * (model.vision.patches + model.vision.class_token)
    decoder = _decoder_elements(model, tokens) * tokens
    connector = _connector_elements(model) * images if read else 0.0
    logits = 3 * 4 * data.text_length * model.decoder.vocabulary
    return (vision + connector + decoder) * jnp.dtype(model.compute_dtype).itemsize + logits


def _encoder_elements(model: VLMConfig, trained: bool) -> float:
    config = model.vision
    whole = 8 * config.width + 2 * config.mlp_width + config.heads * (config.patches + config.class_token)
    kept = {"none": whole, "dots": 6 * config.width + config.mlp_width, "full": config.width}[model.remat]
    return _blocks(config.layers, whole, kept, model.remat, trained)


def _decoder_elements(model: VLMConfig, tokens: int) -> float:
    config = model.decoder
    projected = 2 * (config.heads + config.kv_heads) * config.head_dim
    whole = 4 * config.width + projected + 3 * config.mlp_width + config.heads * tokens
    kept = {"none": whole, "dots": 3 * config.width + projected + 2 * config.mlp_width, "full": config.width}[model.remat]
    return _blocks(config.layers, whole, kept, model.remat, True)


def _blocks(layers: int, whole: float, kept: float, remat: str, trained: bool) -> float:
    return layers * kept + whole * (remat != "none") if trained else whole


def _connector_elements(model: VLMConfig) -> float:
    connector = model.connector
    if not isinstance(connector, ResamplerConfig):
        return model.vision.patches * (model.vision.width + model.decoder.width)
    per_level = 10 * sum(connector.queries) + 2 * len(connector.queries) * model.vision.patches
    return len(connector.feature_layers) * per_level * connector.width + sum(connector.queries) * model.decoder.width


def show(recipe: Recipe, plans: list[StagePlan], topology: Topology | None, console: Console) -> None:
    """Prints a table with a column per stage.

    Raises:
        InputError: after the table, if a stage does not fit into the memory of a device.
    """
    where = f"on {topology.count} x {topology.name.partition(':')[0]}" if topology else "on one device"
    title = f"{recipe.name}{':' + recipe.variant if recipe.variant else ''} {where}"
    table = Table("", *(plan.stage.name for plan in plans), title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, values in _lines(plans, topology):
        if not values:
            table.add_section()
        table.add_row(name, *values)
    console.print(table)
    total = sum(plan.flops.total * plan.stage.steps for plan in plans)
    console.print(f"The whole run: {_quantity(total, 'FLOP')}; of it " + ", ".join(_run_share(plan, total) for plan in plans) + ".")
    console.print("Activations and step time are estimates (see mmjax/plan.py); all else is exact.")
    if topology:
        _check_fit(plans, topology)


def _run_share(plan: StagePlan, total: float) -> str:
    return f"{plan.stage.name} {plan.flops.total * plan.stage.steps / total:.0%}"


def _lines(plans: list[StagePlan], topology: Topology | None) -> list[tuple[str, list[str]]]:
    def line(name: str, text) -> tuple[str, list[str]]:  # noqa: ANN001
        return name, [text(plan) for plan in plans]

    parts = [part for part in (*PARTS, "lora") if any(plan.parameters[part] for plan in plans)]
    flop_parts = list(plans[0].flops.parts)
    lines = [
        line("picture, pixels", lambda plan: str(plan.stage.model.vision.image_size)),
        line("visual tokens per picture", lambda plan: f"{plan.stage.model.visual_tokens:,}"),
        line("tokens per row", lambda plan: f"{plan.row_length:,}"),
        line("rows per step", lambda plan: f"{plan.stage.batch_size:,}"),
        line("steps", lambda plan: f"{plan.stage.steps:,}"),
        ("parameters", []),
        *(line(f"  {part}", lambda plan, part=part: _count(plan.parameters[part])) for part in parts),
        line("  all", lambda plan: _count(sum(plan.parameters.values()))),
        line("  trained", lambda plan: _count(sum(plan.trained.values()))),
        ("FLOPs, forward and backward", []),
        *(line(f"  {part} per row", lambda plan, part=part: _quantity(plan.flops.parts[part].total, "FLOP")) for part in flop_parts),
        line("  per row", lambda plan: _quantity(plan.flops.row.total, "FLOP")),
        line("  per step", lambda plan: _quantity(plan.flops.total, "FLOP")),
        line("  share of the full-token cost", lambda plan: f"{plan.share:.1%}"),
        ("memory per device", []),
        *(line(f"  {f.name}", lambda plan, f=f: _size(getattr(plan.memory, f.name))) for f in dataclasses.fields(Memory)),
        line("  all", lambda plan: _size(plan.memory.total)),
    ]
    if topology:
        lines.append(line(f"seconds per step at {ASSUMED_UTILISATION:.0%} utilisation", lambda plan: f"{_seconds(plan, topology):.3g}"))
    return lines


def _seconds(plan: StagePlan, topology: Topology) -> float:
    return plan.flops.total / (topology.count * topology.device.flops * ASSUMED_UTILISATION)


def _check_fit(plans: list[StagePlan], topology: Topology) -> None:
    for plan in plans:
        if plan.memory.total > topology.device.memory:
            raise InputError(
                f"Stage {plan.stage.name!r} needs about {_size(plan.memory.total)} on each device, and {topology.name} has "
                f"{_size(topology.device.memory)}. Split it over more devices (config.mesh.fsdp, config.mesh.tensor), or keep less of a step: "
                f"--config.stages.{plan.stage.name}.micro_batches, --config.stages.{plan.stage.name}.model.remat=full."
            )


def _count(number: int) -> str:
    return f"{number / 1e6:,.2f} M" if number >= 1e5 else f"{number:,}"


def _size(number: float) -> str:
    return f"{number / 1e9:,.2f} GB" if number >= 1e8 else f"{number / 1e6:,.2f} MB"


def _quantity(number: float, unit: str) -> str:
    for factor, prefix in ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if number >= factor:
            return f"{number / factor:,.2f} {prefix}{unit}"
    return f"{number / 1e6:,.2f} M{unit}"
