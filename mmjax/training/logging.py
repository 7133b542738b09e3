"""What is told of a running stage: the metrics of a log interval, to a person and to trackers.

`Window` sums metrics and measures speed between two log lines; its sums are part of a checkpoint, so that the first line after a restart
covers the same steps as it would have without one. `StageProgress` is what a person sees: a bar with the time that is left on a terminal,
plain lines elsewhere. `Tracker` is where metrics go, and `TRACKERS` names those of the config.
"""

import dataclasses
import datetime
import functools
import json
import math
import os
import pathlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, Self

from absl import logging as absl_logging
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mmjax.data import examples
from mmjax.errors import InputError
from mmjax.recipe.recipe import Recipe
from mmjax.training import metrics
from mmjax.training.flops import MFU_FORMULA
from mmjax.training.metrics import Chrono, StepMetrics


@dataclasses.dataclass(frozen=True)
class Counts:
    """What was trained on. tokens: text and visual ones, padding not counted; images: images, empty slots not counted."""

    steps: int = 0
    tokens: int = 0
    images: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.steps + other.steps, self.tokens + other.tokens, self.images + other.images
        )


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
            self._sums, self._saved = metrics.from_sums(self._saved, new), None
        self._sums = new if self._sums is None else metrics.merge(self._sums, new)
        self._counts += counts

    def state(self) -> list[float] | None:
        """The sums as JSON holds them exactly. Waits for the device."""
        return self._saved if self._sums is None else metrics.to_sums(self._sums)

    def summary(self) -> dict[str, float]:
        """Means over the window, without those of nothing, as there were no targets. Waits for the device."""
        assert self._sums is not None
        means = metrics.summary(self._sums)
        return {name: value for name, value in means.items() if not math.isnan(value)}

    def speed(self) -> tuple[dict[str, float], float | None]:
        """Rates, the share of time by cause, and the seconds of a step; evaluations and saves count in the shares only."""
        spent = {cause: now - self._seconds[cause] for cause, now in self._chrono.seconds.items()}
        training, whole = spent["input"] + spent["step"], sum(spent.values())
        if not self._counts.steps or not training:
            return {}, None
        rates = {
            f"{name}_per_second": count / training
            for name, count in dataclasses.asdict(self._counts).items()
        }
        return rates | {
            f"time_share/{cause}": seconds / whole for cause, seconds in spent.items()
        }, training / self._counts.steps


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
    causes = {
        name.removeprefix(SKIPPED): round(count)
        for name, count in metrics.items()
        if name.startswith(SKIPPED) and count
    }
    if causes:
        parts.append(f"{sum(causes.values()):,} skipped ({examples.describe(causes)})")
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
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
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
            return
        left, rate = "", self._latest.get("steps_per_second")
        if rate and step < self._steps:
            left = f"  {datetime.timedelta(seconds=round((self._steps - step) / rate))} left"
        self.note(f"step {step}/{self._steps}  {describe(metrics)}{left}")

    def note(self, text: str) -> None:
        """A line of its own."""
        print_line(self._console, f"{self._stage}: {text}")

    def explain_mfu(self, peak: float | None) -> None:
        """Says once per console what MFU means, or why there is none. peak: FLOP/s of a device, if known."""
        _explain_mfu(self._console, peak is not None)
        if peak is not None:
            self.note(f"MFU is measured against {peak / 1e12:.3g} TFLOP/s a device")


@functools.cache  # the cache is what makes it once
def _explain_mfu(console: Console, known: bool) -> None:
    unknown = "There is no MFU: the peak FLOP/s of this device are not known (of a CPU never). config.logging.peak_flops can give them."
    print_line(console, MFU_FORMULA if known else unknown)


def print_line(console: Console, text: str) -> None:
    """Prints a text as it is: not wrapped, and nothing in it coloured or read as markup."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


HELD_OUT = "holdout/"
"""Beginning of the names of held-out metrics, which have lines of their own."""


class Tracker(Protocol):
    """Receives numbers by name at a step of a stage."""

    def rewind(self, stage: str, step: int, *, evaluated: bool) -> None:
        """Forgets what was logged of `stage` after `step`: the run goes on from there.

        Args:
            evaluated: whether the held-out loss of that very step stays; if not, it is about to be measured again.
        """

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """metrics.jsonl: one object a line, {"stage", "step", "time", ...}. An interrupted run leaves the same lines as one that was not."""

    def __init__(self, path: pathlib.Path):
        self._path = path

    def rewind(self, stage: str, step: int, *, evaluated: bool) -> None:
        if not self._path.exists():
            return
        kept: list[bytes] = []
        content, broken = self._path.read_bytes(), 0
        for line in content.splitlines():
            try:
                entry = json.loads(line.decode("utf-8"))
                held_out = any(name.startswith(HELD_OUT) for name in entry)
                last = step if evaluated or not held_out else step - 1
                if entry["stage"] != stage or entry["step"] <= last:
                    kept.append(line + b"\n")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                broken += 1  # as of a process that was killed while it wrote
        if broken:
            absl_logging.error("%s: %d lines that cannot be read are dropped.", self._path, broken)
        if (rewound := b"".join(kept)) != content:
            temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            temporary.write_bytes(rewound)
            temporary.replace(self._path)

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        # JSON has no NaN.
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(
                json.dumps({"stage": stage, "step": step, "time": time.time(), **finite}) + "\n"
            )

    def close(self) -> None:
        pass  # every line is written and closed at once


class TensorBoard:
    """Event files that TensorBoard reads, written without TensorFlow; one run per stage."""

    def __init__(self, folder: pathlib.Path):
        from tensorboardX import SummaryWriter

        self._make = lambda stage, purge: SummaryWriter(
            str(folder / stage), purge_step=purge, flush_secs=10
        )
        self._writers: dict[str, SummaryWriter] = {}

    def rewind(self, stage: str, step: int, *, evaluated: bool) -> None:
        # What is logged again at `step` itself replaces what was.
        self._writers[stage] = self._make(stage, step + 1)

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        if stage not in self._writers:
            self._writers[stage] = self._make(stage, None)
        for name, value in metrics.items():
            self._writers[stage].add_scalar(name, value, step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class WeightsAndBiases:
    """A run at wandb.ai, or offline as the `wandb` package is set up. Steps of the stages follow one another."""

    def __init__(self, recipe: Recipe, folder: pathlib.Path):
        try:
            import wandb
        except ImportError:
            raise InputError(
                "logging.trackers has 'wandb', which is not installed: pip install 'mmjax[wandb]'."
            ) from None
        name = f"{recipe.name}-{recipe.variant}" if recipe.variant else recipe.name
        # An id of its own, the same whenever the run goes on: many runs have the same name.
        identity = folder / "wandb.id"
        if not identity.exists():
            identity.write_text(uuid.uuid4().hex, encoding="utf-8")
        self._run = wandb.init(
            project="mmjax",
            name=name,
            dir=str(folder),
            id=identity.read_text(encoding="utf-8"),
            resume="allow",
        )

    def rewind(self, stage: str, step: int, *, evaluated: bool) -> None:
        pass  # the service keeps what it was sent; a resumed run logs the same numbers again

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(
            {f"{stage}/{name}": value for name, value in metrics.items()} | {f"{stage}/step": step}
        )

    def close(self) -> None:
        self._run.finish()


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = list(trackers)

    def rewind(self, stage: str, step: int, *, evaluated: bool) -> None:
        for tracker in self._trackers:
            tracker.rewind(stage, step, evaluated=evaluated)

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(stage, step, metrics)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


TRACKERS: dict[str, Callable[[Recipe, pathlib.Path], Tracker]] = {
    "jsonl": lambda recipe, folder: JsonLines(folder / "metrics.jsonl"),
    "tensorboard": lambda recipe, folder: TensorBoard(folder / "tensorboard"),
    "wandb": WeightsAndBiases,
}


def make_trackers(recipe: Recipe, folder: pathlib.Path) -> Trackers:
    """The trackers that `recipe.logging.trackers` names, writing into the run's folder.

    Raises:
        InputError: a name is unknown, or its package is not installed.
    """
    for name in recipe.logging.trackers:
        if name not in TRACKERS:
            raise InputError(
                f"logging.trackers must be names of {', '.join(TRACKERS)}; {name!r} is none."
            )
    return Trackers([TRACKERS[name](recipe, folder) for name in recipe.logging.trackers])
