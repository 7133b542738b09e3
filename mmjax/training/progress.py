"""What a person sees of a stage: a bar with the time that is left on a terminal, plain lines elsewhere."""

import datetime
import functools
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmjax.data import skips
from mmjax.training.flops import MFU_FORMULA

SHOWN = (  # name of the metric, how it is shown
    ("loss", "loss {:.4f}"),
    ("token_accuracy", "accuracy {:.1%}"),
    ("holdout/loss", "held-out loss {:.4f}"),
    ("holdout/token_accuracy", "held-out accuracy {:.1%}"),
    ("steps_per_second", "{:.3g} steps/s"),
    ("images_per_second", "{:.3g} images/s"),
    ("tokens_per_second", "{:,.0f} tokens/s"),
    ("mfu", "MFU {:.1%}"),
)


SKIPPED = "skipped/"
"""Beginning of the names of the counts of skipped samples; the cause follows."""


def describe(metrics: Mapping[str, float]) -> str:
    """The metrics that fit on a line, and what was skipped, if anything was."""
    parts = [text.format(metrics[name]) for name, text in SHOWN if name in metrics]
    causes = {name.removeprefix(SKIPPED): round(count) for name, count in metrics.items() if name.startswith(SKIPPED) and count}
    if causes:
        parts.append(f"{sum(causes.values()):,} skipped ({skips.describe(causes)})")
    return "  ".join(parts)


class StageProgress:
    """Shows the steps of one stage.

    Args:
        done: steps that earlier processes took.
    """

    def __init__(self, stage: str, steps: int, done: int, console: Console):
        self._stage, self._steps, self._console = stage, steps, console
        self._latest: dict[str, float] = {}
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[metrics]}"), console=console)
            self._task = self._bar.add_task(stage, total=steps, completed=done, metrics="")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """`step` steps are done."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """New metrics: beside the bar, or as a line with the time that is left."""
        self._latest |= metrics
        if self._bar:
            self._bar.update(self._task, completed=step, metrics=describe(self._latest))
        else:
            self.note(f"step {step}/{self._steps}  {describe(metrics)}{self._time_left(step)}")

    def note(self, text: str) -> None:
        """A line of its own."""
        _print(self._console, f"{self._stage}: {text}")

    def explain_mfu(self, peak: float | None) -> None:
        """Says once per console what MFU means, or why there is none. peak: FLOP/s of a device, if known."""
        _explain_mfu(self._console, peak is not None)
        if peak is not None:
            self.note(f"MFU is measured against {peak / 1e12:.3g} TFLOP/s a device")

    def _time_left(self, step: int) -> str:
        rate = self._latest.get("steps_per_second")
        return f"  {datetime.timedelta(seconds=round((self._steps - step) / rate))} left" if rate and step < self._steps else ""


@functools.cache  # the cache is what makes it once
def _explain_mfu(console: Console, known: bool) -> None:
    unknown = "There is no MFU: the peak FLOP/s of this device are not known. Give them as config.logging.peak_flops."
    _print(console, MFU_FORMULA if known else unknown)


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)
