"""What happened since the last log line: metrics summed over steps, and how fast it went.

The sums are part of a checkpoint, so that the first line after a restart covers the same steps as it would have without one.
"""

import dataclasses

import jax
import numpy as np

from mmjax.training import metrics
from mmjax.training.chrono import Chrono
from mmjax.training.metrics import StepMetrics


@dataclasses.dataclass(frozen=True)
class Counts:
    """What was trained on. tokens: text and visual ones, padding not counted; images: pictures, empty slots not counted."""

    steps: int = 0
    tokens: int = 0
    images: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.steps + other.steps, self.tokens + other.tokens, self.images + other.images)


class Window:
    """The steps between two log lines.

    Args:
        chrono: of the stage.
        saved: `state` of the window that an earlier process left open.
    """

    def __init__(self, chrono: Chrono, saved: list[float] | None = None):
        self._chrono = chrono
        self._saved = saved
        self._sums: StepMetrics | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        """Speed is measured from here on."""
        self._counts, self._seconds = Counts(), self._chrono.seconds

    def add(self, new: StepMetrics, counts: Counts) -> None:
        """One more step. Waits for nothing."""
        if self._sums is None and self._saved is not None:
            self._sums, self._saved = _unpack(self._saved, new), None
        self._sums = new if self._sums is None else metrics.merge(self._sums, new)
        self._counts += counts

    def state(self) -> list[float] | None:
        """The sums as JSON holds them exactly. Waits for the device."""
        return self._saved if self._sums is None else [np.asarray(leaf).item() for leaf in jax.tree.leaves(jax.device_get(self._sums))]

    def summary(self) -> dict[str, float]:
        """Means over the window. Waits for the device."""
        assert self._sums is not None
        return metrics.summary(self._sums)

    def speed(self) -> tuple[dict[str, float], float | None]:
        """Rates, the share of time by cause, and the seconds of a step; evaluations and saves count in the shares only."""
        spent = {cause: now - self._seconds[cause] for cause, now in self._chrono.seconds.items()}
        training, whole = spent["input"] + spent["step"], sum(spent.values())
        if not self._counts.steps or not training:
            return {}, None
        rates = {f"{name}_per_second": count / training for name, count in dataclasses.asdict(self._counts).items()}
        return rates | {f"time_share/{cause}": seconds / whole for cause, seconds in spent.items()}, training / self._counts.steps


def _unpack(values: list[float], like: StepMetrics) -> StepMetrics:
    leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, [np.asarray(value, leaf.dtype) for value, leaf in zip(values, leaves, strict=True)])
