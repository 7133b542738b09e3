"""What the stages of runs cost, and what one run saves against another: 1 - ours / baseline, in three measures that are never mixed.

Wall-clock says how long one waits, and depends on everything; device time says what one pays for, and depends on the hardware and on how
well it is used; FLOPs say what was computed, and depend on the recipes alone.
"""

import dataclasses
from typing import Any

from mmjax.base.format import plural

MEASURES = ("seconds", "device_seconds", "flops")


@dataclasses.dataclass(frozen=True)
class StageCost:
    """What a stage cost. None: not known.

    Attributes:
        samples: rows that were trained on; tokens: in them, padding not counted.
        seconds: wall-clock; device_seconds: the same times the devices, of which there are `devices`.
        flops: by the rules of `training.flops`.
    """

    name: str
    samples: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    device_seconds: float | None = None
    flops: float | None = None
    devices: int | None = None


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a run cost, in the order of its stages.

    Attributes:
        device: the kind of its devices; None: not known.
    """

    name: str
    stages: tuple[StageCost, ...]
    device: str | None = None

    def total(self, measure: str) -> float | None:
        """Of all stages; None if one of them does not know it.

        Args:
            measure: a field of StageCost.
        """
        values = [getattr(stage, measure) for stage in self.stages]
        return None if None in values else sum(values)

    @property
    def before_last(self) -> "Costs":
        """All stages but the last one."""
        return dataclasses.replace(self, stages=self.stages[:-1])

    @property
    def devices(self) -> tuple[int | None, ...]:
        """How many devices the stages had; one number if all had the same."""
        return tuple(dict.fromkeys(stage.devices for stage in self.stages))

    @property
    def hardware(self) -> str:
        """In words: "8 x NVIDIA H100"."""
        counts = " and ".join("?" if count is None else str(count) for count in self.devices)
        return f"{counts} x {self.device or 'unknown devices'}"


@dataclasses.dataclass(frozen=True)
class Saving:
    """Which share of a baseline's cost a run did without, by measure: below zero where it cost more. None: not known."""

    seconds: float | None
    device_seconds: float | None
    flops: float | None


def share_saved(ours: float | None, baseline: float | None) -> float | None:
    """1 - ours / baseline, in any unit: 9.36 + 4.25 + 5.56 hours against 7.01 + 27.78 save 44.9 % (arXiv:2505.22664, figure 2).

    None if one is not known, or there is nothing to save.
    """
    return None if ours is None or not baseline else 1 - ours / baseline


def saving(ours: Costs, baseline: Costs) -> Saving:
    """What a run saves against another, over all of their stages."""
    return Saving(
        **{
            measure: share_saved(ours.total(measure), baseline.total(measure))
            for measure in MEASURES
        }
    )


def reservations(ours: Costs, baseline: Costs) -> list[str]:
    """What of a comparison says more about the hardware than about the runs, in sentences; empty: all of it compares like with like."""
    if all(
        run.total(measure) is None
        for run in (ours, baseline)
        for measure in ("seconds", "device_seconds")
    ):
        return []  # FLOPs alone
    where = f"{ours.name}: {ours.hardware}; {baseline.name}: {baseline.hardware}"
    if ours.device != baseline.device:
        return [
            f"The devices differ ({where}): wall-clock and device time compare machines as well as runs. FLOPs compare the runs."
        ]
    if ours.devices != baseline.devices:
        return [
            f"The numbers of devices differ ({where}): wall-clock compares them as well as the runs. Device time and FLOPs do not."
        ]
    if ours.device is None or None in ours.devices:
        return [
            f"The hardware is not known ({where}): wall-clock and device time may compare machines rather than runs."
        ]
    return []


def unlike(ours: Costs, baseline: Costs) -> list[str]:
    """What must be known to read the saving before the last stage; nothing where both have as many stages."""
    counts = len(ours.stages) - 1, len(baseline.stages) - 1
    if counts[0] == counts[1]:
        return []
    return [
        f"Before the last stage, ours has {plural(counts[0], 'stage')} and the baseline {counts[1]}: that line compares unlike work."
    ]


def as_json(ours: Costs, baseline: Costs) -> dict[str, Any]:
    """Both runs, with their totals, and the savings, as plain data."""

    def plain(costs: Costs) -> dict[str, Any]:
        totals = {measure: costs.total(measure) for measure in MEASURES}
        return {
            **dataclasses.asdict(costs),
            "stages": [dataclasses.asdict(stage) for stage in costs.stages],
            "total": totals,
        }

    return {
        "run": plain(ours),
        "against": plain(baseline),
        "saving": dataclasses.asdict(saving(ours, baseline)),
        "saving_before_the_last_stage": dataclasses.asdict(
            saving(ours.before_last, baseline.before_last)
        ),
        "reservations": [*unlike(ours, baseline), *reservations(ours, baseline)],
    }
