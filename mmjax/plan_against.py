"""What a recipe saves against another, planned: FLOPs of whole stages, counted from shapes, in the table that compares runs, too."""

from rich.console import Console

from mmjax.errors import InputError
from mmjax.ledger.costs import Costs, StageCost
from mmjax.ledger.table import show as show_comparison
from mmjax.plan import ASSUMED_UTILISATION, StagePlan, Topology, make_plan
from mmjax.recipe import Recipe


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
        stages.append(StageCost(plan.stage.name, rows, device_seconds=device_seconds, flops=flops, devices=devices))
    return Costs(label(recipe), tuple(stages), topology.name.partition(":")[0] if topology else None)


def show(ours: Costs, baseline: Costs, too_large: list[str], console: Console) -> None:
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
        text = f"Of {baseline.name}, too large for these devices as it stands: {', '.join(too_large)}."
        console.print(text, markup=False, highlight=False, soft_wrap=True)
