"""Where metrics go: a small interface, and the trackers that have a name in the config."""

import json
import math
import pathlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from mmjax.errors import InputError
from mmjax.recipe import Recipe

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
        text = self._path.read_text(encoding="utf-8")
        kept = "".join(f"{line}\n" for line in text.splitlines() if _stays(line, stage, step, evaluated))
        if kept != text:
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(kept, encoding="utf-8")
            temporary.replace(self._path)

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, "step": step, "time": time.time(), **finite}) + "\n")

    def close(self) -> None:
        pass  # every line is written and closed at once


def _stays(line: str, stage: str, step: int, evaluated: bool) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False  # a killed process did not finish it
    last = step if evaluated or not any(name.startswith(HELD_OUT) for name in entry) else step - 1
    return entry["stage"] != stage or entry["step"] <= last


class TensorBoard:
    """Event files that TensorBoard reads, written without TensorFlow; one run per stage."""

    def __init__(self, folder: pathlib.Path):
        from tensorboardX import SummaryWriter

        self._make = lambda stage, purge: SummaryWriter(str(folder / stage), purge_step=purge, flush_secs=10)
        self._writers: dict[str, SummaryWriter] = {}

    def rewind(self, stage: str, step: int, *, evaluated: bool) -> None:
        self._writers[stage] = self._make(stage, step + 1)  # what is logged again at `step` itself takes the place of what was

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
            raise InputError("logging.trackers has 'wandb', which is not installed: pip install 'mmjax[wandb]'.") from None
        name = f"{recipe.name}-{recipe.variant}" if recipe.variant else recipe.name
        self._run = wandb.init(project="mmjax", name=name, dir=str(folder), id=_identity(folder / "wandb.id"), resume="allow")

    def rewind(self, stage: str, step: int, *, evaluated: bool) -> None:
        pass  # the service keeps what it was sent; a resumed run logs the same numbers again

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({f"{stage}/{name}": value for name, value in metrics.items()} | {f"{stage}/step": step})

    def close(self) -> None:
        self._run.finish()


def _identity(path: pathlib.Path) -> str:
    """A name for the run that no other has, the same whenever it goes on: folders of the same name are many."""
    if not path.exists():
        path.write_text(uuid.uuid4().hex, encoding="utf-8")
    return path.read_text(encoding="utf-8")


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
            raise InputError(f"logging.trackers has {name!r}; there are {', '.join(TRACKERS)}.")
    return Trackers([TRACKERS[name](recipe, folder) for name in recipe.logging.trackers])
