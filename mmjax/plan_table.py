"""A plan as a table on the terminal: a column for each stage."""

import dataclasses

from rich.console import Console
from rich.table import Table

from mmjax import vocabulary
from mmjax.errors import InputError
from mmjax.plan import PARTS, Memory, StagePlan, Topology, make_plan
from mmjax.recipe import Recipe

ASSUMED_UTILISATION = 0.4

Line = tuple[str, list[str]]
"""A name, and a value for each stage; no values: the heading of what follows."""


def run(recipe: Recipe, topology: str | None = None) -> None:
    """Prints the plan of a recipe. Where the vocabulary is not known yet, the training text is read for it.

    Raises:
        InputError: as `make_plan` and `show`, or the data cannot be read.
    """
    devices = Topology.parse(topology) if topology else None
    if any(stage.model.decoder.vocabulary == 0 for stage in recipe.stages.values()):
        recipe = vocabulary.fit(recipe, vocabulary.make_tokenizer(recipe))
    show(recipe, make_plan(recipe, devices), devices, Console())


def show(recipe: Recipe, plans: list[StagePlan], topology: Topology | None, console: Console) -> None:
    """Prints the table and what the whole run adds up to.

    Raises:
        InputError: after the table, if a stage does not fit into the memory of a device.
    """
    where = f"on {topology.count} x {topology.name.partition(':')[0]}" if topology else "on one device"
    title = f"{recipe.name}{':' + recipe.variant if recipe.variant else ''} {where}"
    table = Table("", *(plan.stage.name for plan in plans), title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, values in (*_sizes(plans), *_parameters(plans), *_flops(plans), *_memory(plans), *_time(plans, topology)):
        if not values:
            table.add_section()
        table.add_row(name, *values)
    console.print(table)
    total = sum(plan.flops.total * plan.stage.steps for plan in plans)
    shares = ", ".join(f"{plan.stage.name} {plan.flops.total * plan.stage.steps / total:.0%}" for plan in plans)
    console.print(f"The whole run: {_quantity(total)}; of it {shares}.")
    console.print("Activations and step time are estimates (formulas in mmjax/plan.py); all else is exact.")
    if topology:
        _check_fit(plans, topology)


def _sizes(plans: list[StagePlan]) -> list[Line]:
    return [
        ("picture, pixels", [f"{plan.stage.model.vision.image_size}" for plan in plans]),
        ("visual tokens per picture", [f"{plan.stage.model.visual_tokens:,}" for plan in plans]),
        ("tokens per row", [f"{plan.row_length:,}" for plan in plans]),
        ("rows per step", [f"{plan.stage.batch_size:,}" for plan in plans]),
        ("steps", [f"{plan.stage.steps:,}" for plan in plans]),
    ]


def _parameters(plans: list[StagePlan]) -> list[Line]:
    parts = [part for part in (*PARTS, "lora") if any(plan.parameters[part] for plan in plans)]
    return [
        ("parameters", []),
        *((f"  {part}", [_count(plan.parameters[part]) for plan in plans]) for part in parts),
        ("  all", [_count(sum(plan.parameters.values())) for plan in plans]),
        ("  trained", [_count(sum(plan.trained.values())) for plan in plans]),
    ]


def _flops(plans: list[StagePlan]) -> list[Line]:
    return [
        ("FLOPs, forward and backward", []),
        *((f"  {part} per row", [_quantity(plan.flops.parts[part].total) for plan in plans]) for part in plans[0].flops.parts),
        ("  per row", [_quantity(plan.flops.row.total) for plan in plans]),
        ("  per step", [_quantity(plan.flops.total) for plan in plans]),
        ("  share of the full-token cost", [f"{plan.share:.1%}" for plan in plans]),
    ]


def _memory(plans: list[StagePlan]) -> list[Line]:
    kinds = [field.name for field in dataclasses.fields(Memory)]
    return [
        ("memory per device", []),
        *((f"  {kind}", [_size(getattr(plan.memory, kind)) for plan in plans]) for kind in kinds),
        ("  all", [_size(plan.memory.total) for plan in plans]),
    ]


def _time(plans: list[StagePlan], topology: Topology | None) -> list[Line]:
    if topology is None:
        return []
    speed = topology.count * topology.device.flops * ASSUMED_UTILISATION
    return [(f"seconds per step at {ASSUMED_UTILISATION:.0%} utilisation", [f"{plan.flops.total / speed:.3g}" for plan in plans])]


def _check_fit(plans: list[StagePlan], topology: Topology) -> None:
    for plan in plans:
        if plan.memory.total > topology.device.memory:
            flag = f"--config.stages.{plan.stage.name}"
            raise InputError(
                f"Stage {plan.stage.name!r} needs about {_size(plan.memory.total)} on each device, and {topology.name} has "
                f"{_size(topology.device.memory)}. Split it over more devices (--config.mesh.fsdp, --config.mesh.tensor), or hold less at "
                f"once: {flag}.micro_batches, {flag}.model.remat=full."
            )


def _count(number: int) -> str:
    return f"{number / 1e6:,.2f} M" if number >= 1e5 else f"{number:,}"


def _size(number: float) -> str:
    return f"{number / 1e9:,.2f} GB" if number >= 1e8 else f"{number / 1e6:,.2f} MB"


def _quantity(flops: float) -> str:
    for factor, prefix in ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if flops >= factor:
            return f"{flops / factor:,.2f} {prefix}FLOP"
    return f"{flops / 1e6:,.2f} MFLOP"
