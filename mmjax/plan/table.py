"""What a recipe saves against another, planned: FLOPs of whole stages, counted from shapes, in the table that compares runs, too.

A plan as a table on the terminal: a column for each stage.
"""

import dataclasses

from rich.console import Console
from rich.table import Table

from mmjax.data.text import vocabulary
from mmjax.errors import InputError
from mmjax.ledger.costs import Costs, StageCost
from mmjax.ledger.table import show as show_comparison
from mmjax.plan.plan import ASSUMED_UTILISATION, Memory, StagePlan, Topology, make_plan
from mmjax.recipe.recipe import PARTS, Recipe


def label(recipe: Recipe) -> str:
    """Name and variant: "cos:7b"."""
    return f"{recipe.name}{':' + recipe.variant if recipe.variant else ''}"


def plan_baseline(recipe: Recipe, topology: Topology | None) -> list[StagePlan]:
    """As `make_plan`; what is wrong is said to be of the baseline."""
    try:
        return make_plan(recipe, topology)
    except InputError as error:
        raise InputError(f"--against: {label(recipe)}: {error}") from None


def costs(recipe: Recipe, plans: list[StagePlan], topology: Topology | None) -> Costs:
    """What a plan says of whole stages: steps times FLOPs of a step; on a topology, device time at ASSUMED_UTILISATION.

    Wall-clock stays unknown: at one utilisation it would be device time over again, and in truth it is where recipes differ.
    """
    stages = []
    for plan in plans:
        flops = plan.flops.total * plan.stage.steps
        device_seconds = flops / (topology.device.flops * ASSUMED_UTILISATION) if topology else None
        rows = plan.stage.steps * plan.stage.batch_size
        devices = topology.count if topology else None
        stages.append(
            StageCost(
                plan.stage.name, rows, device_seconds=device_seconds, flops=flops, devices=devices
            )
        )
    return Costs(
        label(recipe), tuple(stages), topology.name.partition(":")[0] if topology else None
    )


def show_against(ours: Costs, baseline: Costs, too_large: list[str], console: Console) -> None:
    """Prints the comparison.

    Args:
        too_large: stages of the baseline that the topology has no memory for.
    """
    console.print("\nWhole stages, planned", highlight=False)
    show_comparison(ours, baseline, console)
    if ours.total("device_seconds") is not None:
        text = f"Device time is planned at {ASSUMED_UTILISATION:.0%} utilisation of every stage; so it saves what FLOPs do."
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if too_large:
        text = (
            f"Of {baseline.name}, too large for these devices as it stands: {', '.join(too_large)}."
        )
        console.print(text, markup=False, highlight=False, soft_wrap=True)


TableRow = tuple[str, list[str]]
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
    baseline = plan_baseline(against, devices) if against else []
    show(recipe, plans, devices, console)
    if against:
        ours, theirs = costs(recipe, plans, devices), costs(against, baseline, devices)
        show_against(
            ours, theirs, [plan.stage.name for plan in _too_large(baseline, devices)], console
        )
    _check_fit(plans, devices)


def _with_vocabulary(recipe: Recipe) -> Recipe:
    if any(stage.model.decoder.vocabulary == 0 for stage in recipe.stages.values()):
        return vocabulary.fit(recipe, vocabulary.make_tokenizer(recipe))
    return recipe


def _with_text(recipe: Recipe, length: int | None) -> Recipe:
    if length is None:
        return recipe
    stages = {
        name: dataclasses.replace(stage, data=dataclasses.replace(stage.data, text_length=length))
        for name, stage in recipe.stages.items()
    }
    return dataclasses.replace(recipe, stages=stages)


def show(
    recipe: Recipe, plans: list[StagePlan], topology: Topology | None, console: Console
) -> None:
    """Prints the table and what the whole run adds up to."""
    where = (
        f"on {topology.count} x {topology.name.partition(':')[0]}" if topology else "on one device"
    )
    title = f"{label(recipe)} {where}"
    table = Table("", *(plan.stage.name for plan in plans), title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, values in (
        *_sizes(plans),
        *_parameters(plans),
        *_flops(plans),
        *_memory(plans),
        *_time(plans, topology),
    ):
        if not values:
            table.add_section()
        table.add_row(name, *values)
    console.print(table)
    total = sum(plan.flops.total * plan.stage.steps for plan in plans)
    shares = ", ".join(
        f"{plan.stage.name} {plan.flops.total * plan.stage.steps / total:.0%}" for plan in plans
    )
    console.print(f"The whole run: {_quantity(total)}; of it {shares}.")
    console.print(
        "Activations and step time are estimates (formulas in mmjax/plan/plan.py); all else is exact."
    )


def _sizes(plans: list[StagePlan]) -> list[TableRow]:
    return [
        ("image, pixels", [f"{plan.stage.model.vision.image_size}" for plan in plans]),
        ("visual tokens per image", [f"{plan.stage.model.visual_tokens:,}" for plan in plans]),
        ("tokens per row", [f"{plan.row_length:,}" for plan in plans]),
        ("rows per step", [f"{plan.stage.batch_size:,}" for plan in plans]),
        ("steps", [f"{plan.stage.steps:,}" for plan in plans]),
    ]


def _parameters(plans: list[StagePlan]) -> list[TableRow]:
    parts = [part for part in (*PARTS, "lora") if any(plan.parameters[part] for plan in plans)]
    return [
        ("parameters", []),
        *((f"  {part}", [_count(plan.parameters[part]) for plan in plans]) for part in parts),
        ("  all", [_count(sum(plan.parameters.values())) for plan in plans]),
        ("  trained", [_count(sum(plan.trained.values())) for plan in plans]),
    ]


def _flops(plans: list[StagePlan]) -> list[TableRow]:
    return [
        ("FLOPs, forward and backward", []),
        *(
            (f"  {part} per row", [_quantity(plan.flops.parts[part].total) for plan in plans])
            for part in plans[0].flops.parts
        ),
        ("  per row", [_quantity(plan.flops.row.total) for plan in plans]),
        ("  per step", [_quantity(plan.flops.total) for plan in plans]),
        ("  beside the last stage's model", [f"{plan.share:.1%}" for plan in plans]),
    ]


def _memory(plans: list[StagePlan]) -> list[TableRow]:
    kinds = [field.name for field in dataclasses.fields(Memory)]
    return [
        ("memory per device", []),
        *((f"  {kind}", [_size(getattr(plan.memory, kind)) for plan in plans]) for kind in kinds),
        ("  all", [_size(plan.memory.total) for plan in plans]),
    ]


def _time(plans: list[StagePlan], topology: Topology | None) -> list[TableRow]:
    if topology is None:
        return []
    speed = topology.count * topology.device.flops * ASSUMED_UTILISATION
    return [
        (
            f"seconds per step at {ASSUMED_UTILISATION:.0%} utilisation",
            [f"{plan.flops.total / speed:.3g}" for plan in plans],
        )
    ]


def _too_large(plans: list[StagePlan], topology: Topology | None) -> list[StagePlan]:
    return [plan for plan in plans if topology and plan.memory.total > topology.device.memory]


def _check_fit(plans: list[StagePlan], topology: Topology | None) -> None:
    for plan in _too_large(plans, topology):
        assert topology is not None
        flag = f"--config.stages.{plan.stage.name}"
        raise InputError(
            f"Stage {plan.stage.name!r} needs about {_size(plan.memory.total)} on each device, and {topology.name} has "
            f"{_size(topology.device.memory)}. Split it over more devices (--config.mesh.fsdp, --config.mesh.tensor), or hold less at "
            f"once: {flag}.gradient_accumulation_steps, {flag}.model.remat=full."
        )


def _count(number: int) -> str:
    return f"{number / 1e6:,.2f} M" if number >= 1e5 else f"{number:,}"


def _size(number: float) -> str:
    return f"{number / 1e9:,.2f} GB" if number >= 1e8 else f"{number / 1e6:,.2f} MB"


def _quantity(flops: float) -> str:
    for factor, prefix in (
        (1e24, "Y"),
        (1e21, "Z"),
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
    ):
        if flops >= factor:
            return f"{flops / factor:,.2f} {prefix}FLOP"
    return f"{flops / 1e6:,.2f} MFLOP"
