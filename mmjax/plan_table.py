"""A plan as a table on the terminal: a column for each stage."""

import dataclasses

from rich.console import Console
from rich.table import Table

from mmjax import plan_against, vocabulary
from mmjax.errors import InputError
from mmjax.plan import ASSUMED_UTILISATION, PARTS, Memory, StagePlan, Topology, make_plan
from mmjax.recipe import Recipe

Line = tuple[str, list[str]]
"""A name, and a value for each stage; no values: the heading of what follows."""


def run(
    recipe: Recipe,
    topology: str | None = None,
    against: Recipe | None = None,
    console: Console | None = None,
    *,
    text_length: int | None = None,
) -> None:
    """Prints the plan of a recipe. Where the vocabulary is not known yet, the training text is read for it.

    Args:
        against: a recipe that it is compared with, after the plan.
        text_length: text tokens of a row in all stages of both; None: what they say.

    Raises:
        InputError: as `make_plan`, or the data cannot be read; after all is printed, if a stage does not fit into the memory of a device.
    """
    devices, console = Topology.parse(topology) if topology else None, console or Console()
    recipe = _with_text(_with_vocabulary(recipe), text_length)
    against = _with_text(_with_vocabulary(against), text_length) if against else None
    plans = make_plan(recipe, devices)
    baseline = plan_against.plan_baseline(against, devices) if against else []
    show(recipe, plans, devices, console)
    if against:
        ours, theirs = plan_against.costs(recipe, plans, devices), plan_against.costs(against, baseline, devices)
        plan_against.show(ours, theirs, [plan.stage.name for plan in _too_large(baseline, devices)], console)
    _check_fit(plans, devices)


def _with_vocabulary(recipe: Recipe) -> Recipe:
    if any(stage.model.decoder.vocabulary == 0 for stage in recipe.stages.values()):
        return vocabulary.fit(recipe, vocabulary.make_tokenizer(recipe))
    return recipe


def _with_text(recipe: Recipe, length: int | None) -> Recipe:
    if length is None:
        return recipe
    stages = {
        name: dataclasses.replace(stage, data=dataclasses.replace(stage.data, text_length=length)) for name, stage in recipe.stages.items()
    }
    return dataclasses.replace(recipe, stages=stages)


def show(recipe: Recipe, plans: list[StagePlan], topology: Topology | None, console: Console) -> None:
    """Prints the table and what the whole run adds up to."""
    where = f"on {topology.count} x {topology.name.partition(':')[0]}" if topology else "on one device"
    title = f"{plan_against.label(recipe)} {where}"
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
        ("  beside the last stage's model", [f"{plan.share:.1%}" for plan in plans]),
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


def _too_large(plans: list[StagePlan], topology: Topology | None) -> list[StagePlan]:
    return [plan for plan in plans if topology and plan.memory.total > topology.device.memory]


def _check_fit(plans: list[StagePlan], topology: Topology | None) -> None:
    for plan in _too_large(plans, topology):
        assert topology is not None
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
