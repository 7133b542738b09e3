"""What a person sees of a stage: a bar with the time that is left on a terminal, plain lines elsewhere."""

from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SHOWN = (  # name of the metric, how it is shown
    ("loss", "loss {:.4f}"),
    ("holdout/loss", "held out {:.4f}"),
    ("steps_per_second", "{:.2f} steps/s"),
    ("images_per_second", "{:.0f} images/s"),
    ("tokens_per_second", "{:.0f} tokens/s"),
    ("mfu", "MFU {:.0%}"),
)


def describe(metrics: Mapping[str, float]) -> str:
    """The metrics that fit on a line."""
    return "  ".join(text.format(metrics[name]) for name, text in SHOWN if name in metrics)


class StageProgress:
    """Shows the steps of one stage.

    Args:
        done: steps that earlier processes took.
    """

    def __init__(self, stage: str, steps: int, done: int, console: Console):
        self._stage, self._steps, self._console = stage, steps, console
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[metrics]}"), console=console, transient=False)
            self._task = self._bar.add_task(stage, total=steps, completed=done, metrics="")
        self._latest: dict[str, float] = {}

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
        """New metrics: beside the bar, or as a line."""
        self._latest |= metrics
        if self._bar:
            self._bar.update(self._task, completed=step, metrics=describe(self._latest))
        else:
            self.note(f"step {step}/{self._steps}  {describe(metrics)}")

    def note(self, text: str) -> None:
        """A line of its own."""
        self._console.print(f"{self._stage}: {text}", highlight=False, soft_wrap=True, markup=False)
