"""The command `--mode=plan`: a plan as a table with a column for each stage, and what a recipe saves against another."""

import dataclasses
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from mmjax.config.checks import refuse_missing
from mmjax.data.text import vocabulary
from mmjax.errors import InputError
from mmjax.ledger.costs import Costs, StageCost
from mmjax.ledger.table import show as show_comparison
from mmjax.plan.plan import ASSUMED_UTILISATION, Memory, StagePlan, make_plan
from mmjax.plan.topology import Topology
from mmjax.recipe.recipe import PARTS, Recipe


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
    recipe = complete(recipe, text_length)
    plans = make_plan(recipe, devices)
    baseline = []
    if against:
        against = complete(against, text_length)
        try:
            baseline = make_plan(against, devices)
        except InputError as error:
            raise InputError(f"--against: {label(against)}: {error}") from None
    show(recipe, plans, devices, console)
    if against:
        own, other = costs(recipe, plans, devices), costs(against, baseline, devices)
        show_against(own, other, too_large(baseline, devices), console)
    if devices and (unfit := too_large(plans, devices)):
        plan, flag = unfit[0], f"--config.stages.{unfit[0].stage.name}"
        raise InputError(
            f"Stage {plan.stage.name!r} needs about {_size(plan.memory.total)} on each device, and {devices.name} has "
            f"{_size(devices.device.memory)}. Split it over more devices (--config.mesh.fsdp, --config.mesh.tensor), or hold less at "
            f"once: {flag}.gradient_accumulation_steps, {flag}.model.remat=full."
        )


def complete(recipe: Recipe, text_length: int | None) -> Recipe:
    """The recipe with a vocabulary for its tokenizer and, unless it is None, with `text_length` in every stage."""
    if any(stage.model.decoder.vocabulary is None for stage in recipe.stages.values()):
        refuse_missing(
            recipe
        )  # the tokenizer, or the text that it is built from, says how many tokens there are
        recipe = vocabulary.fit(recipe, vocabulary.make_tokenizer(recipe, download=False))
    if text_length is None:
        return recipe
    stages = {
        name: dataclasses.replace(
            stage, data=dataclasses.replace(stage.data, text_length=text_length)
        )
        for name, stage in recipe.stages.items()
    }
    return dataclasses.replace(recipe, stages=stages)


def label(recipe: Recipe) -> str:
    """Name and variant: "cos:7b"."""
    return f"{recipe.name}{':' + recipe.variant if recipe.variant else ''}"


def too_large(plans: list[StagePlan], topology: Topology | None) -> list[StagePlan]:
    """Stages that need more memory than a device of the topology has."""
    return [plan for plan in plans if topology and plan.memory.total > topology.device.memory]


def show(
    recipe: Recipe, plans: list[StagePlan], topology: Topology | None, console: Console
) -> None:
    """Prints the table and what the whole run adds up to."""
    where = f"on {topology.hardware}" if topology else "on one device"
    title = f"{label(recipe)} {where}"
    table = Table("", *(plan.stage.name for plan in plans), title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, values in rows(plans, topology):
        if not values:
            table.add_section()
        table.add_row(name, *values)
    console.print(table)
    total = sum(plan.flops.total * plan.stage.steps for plan in plans)
    shares = ", ".join(
        f"{plan.stage.name} {plan.flops.total * plan.stage.steps / total:.0%}" for plan in plans
    )
    console.print(f"The whole run: {_flop(total)}; of it {shares}.")
    if topology:
        console.print(
            f"At {ASSUMED_UTILISATION:.0%} utilisation: {device_hours(plans, topology)}, for the steps alone.",
            soft_wrap=True,
        )
    console.print(
        "Activations and step time are estimates (formulas in mmjax/plan/plan.py); all else is exact."
    )


def rows(plans: list[StagePlan], topology: Topology | None) -> Iterator[tuple[str, list[str]]]:
    """Lines of the table: a name, and a value for each stage; without values, the heading of those that follow."""
    models = [plan.stage.model for plan in plans]
    yield "image, pixels", [f"{model.vision.image_size}" for model in models]
    yield "visual tokens per image", [f"{model.visual_tokens:,}" for model in models]
    yield "tokens per row", [f"{plan.row_length:,}" for plan in plans]
    yield "rows per step", [f"{plan.stage.batch_size:,}" for plan in plans]
    yield "steps", [f"{plan.stage.steps:,}" for plan in plans]

    yield "parameters", []
    for part in (*PARTS, "lora"):
        if any(plan.parameters[part] for plan in plans):
            yield f"  {part}", [_count(plan.parameters[part]) for plan in plans]
    yield "  all", [_count(sum(plan.parameters.values())) for plan in plans]
    yield "  trained", [_count(sum(plan.trained.values())) for plan in plans]

    yield "FLOPs, forward and backward", []
    for part in plans[0].flops.parts:
        yield f"  {part} per row", [_flop(plan.flops.parts[part].total) for plan in plans]
    yield "  per row", [_flop(plan.flops.row.total) for plan in plans]
    yield "  per step", [_flop(plan.flops.total) for plan in plans]
    yield "  beside the last stage's model", [f"{plan.share:.1%}" for plan in plans]

    yield "memory per device", []
    for field in dataclasses.fields(Memory):
        yield f"  {field.name}", [_size(getattr(plan.memory, field.name)) for plan in plans]
    yield "  all", [_size(plan.memory.total) for plan in plans]

    if topology:
        speed = topology.count * topology.device.flops * ASSUMED_UTILISATION
        name = f"seconds per step at {ASSUMED_UTILISATION:.0%} utilisation"
        yield name, [f"{plan.flops.total / speed:.3g}" for plan in plans]
        yield (
            "hours of all steps",
            [_hours(_device_seconds(plan, topology) / topology.count) for plan in plans],
        )
        yield "device-hours", [_hours(_device_seconds(plan, topology)) for plan in plans]


def device_hours(plans: list[StagePlan], topology: Topology) -> str:
    """What the whole recipe takes, in words: "1,234 device-hours, which are 154 hours on 8 x h100"."""
    seconds = sum(_device_seconds(plan, topology) for plan in plans)
    return f"{_hours(seconds)} device-hours, which are {_hours(seconds / topology.count)} hours on {topology.hardware}"


def _device_seconds(plan: StagePlan, topology: Topology) -> float:
    """Of all steps of a stage."""
    speed = topology.device.flops * ASSUMED_UTILISATION
    return plan.flops.total * plan.stage.steps / speed


def costs(recipe: Recipe, plans: list[StagePlan], topology: Topology | None) -> Costs:
    """Planned costs of whole stages: steps times FLOPs of a step; on a topology, device time at ASSUMED_UTILISATION.

    Wall-clock stays unknown: at one utilisation it would be device time over again, and in truth it is where recipes differ.
    """
    stages = []
    for plan in plans:
        flops = plan.flops.total * plan.stage.steps
        stages.append(
            StageCost(
                plan.stage.name,
                samples=plan.stage.steps * plan.stage.batch_size,
                device_seconds=_device_seconds(plan, topology) if topology else None,
                flops=flops,
                devices=topology.count if topology else None,
            )
        )
    device = topology.name.partition(":")[0] if topology else None
    return Costs(label(recipe), tuple(stages), device)


def show_against(ours: Costs, baseline: Costs, unfit: list[StagePlan], console: Console) -> None:
    """Prints the comparison.

    Args:
        unfit: stages of the baseline that the topology has no memory for.
    """
    console.print("\nWhole stages, planned", highlight=False)
    show_comparison(ours, baseline, console)
    remarks = []
    if ours.total("device_seconds") is not None:
        remarks.append(
            f"Device time is planned at {ASSUMED_UTILISATION:.0%} utilisation of every stage; so it saves what FLOPs do."
        )
    if unfit:
        names = ", ".join(plan.stage.name for plan in unfit)
        remarks.append(f"Of {baseline.name}, too large for these devices as it stands: {names}.")
    for remark in remarks:
        console.print(remark, markup=False, highlight=False, soft_wrap=True)


def _count(number: int) -> str:
    return f"{number / 1e6:,.2f} M" if number >= 1e5 else f"{number:,}"


def _size(number: float) -> str:
    return f"{number / 1e9:,.2f} GB" if number >= 1e8 else f"{number / 1e6:,.2f} MB"


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _flop(number: float) -> str:
    for power, prefix in enumerate("YZEPTG"):
        if number >= 10.0 ** (24 - 3 * power):
            return f"{number / 10.0 ** (24 - 3 * power):,.2f} {prefix}FLOP"
    return f"{number / 1e6:,.2f} MFLOP"
