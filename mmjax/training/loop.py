"""The training loop. It knows stages, states and rows; it knows no paper.

An iteration is: take the next batch, step, look at the step before (so that the device never waits for the host), and, where due, log, measure
the held-out loss, and save. A stop request is answered between two steps: the state is saved and `Preempted` is raised.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from rich.console import Console

from mmjax.data.loader import batches
from mmjax.data.rows import Rows
from mmjax.errors import InputError, NonFiniteError, Preempted
from mmjax.models import parameters
from mmjax.recipe import Recipe, Stage
from mmjax.training import flops, metrics, sharding
from mmjax.training import state as training_state
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.chrono import Chrono
from mmjax.training.preemption import StopSignal
from mmjax.training.progress import StageProgress
from mmjax.training.state import TrainState
from mmjax.training.step import make_evaluation_step, make_train_step
from mmjax.training.trackers import Tracker
from mmjax.training.watchdog import Watchdog
from mmjax.typing import Array, Batch, Params


@dataclasses.dataclass(frozen=True)
class StageResult:
    """What a stage did, over all the processes that worked on it.

    Attributes:
        samples: rows that were trained on; tokens: text and visual ones in them, padding not counted.
        seconds: wall time by cause (`chrono.CAUSES`).
        flops: of all steps, by the rules of `training.flops`.
        held_out_loss: nats per target at the end; None: nothing is held out, or the stage is not finished.
        finished: all steps are done.
    """

    params: Params
    steps: int
    samples: int
    tokens: int
    seconds: dict[str, float]
    flops: float
    held_out_loss: float | None
    finished: bool


@dataclasses.dataclass(frozen=True)
class StageFiles:
    """Where a stage keeps things: `checkpoints` (a folder of its own) and `dump` (written if the loss is not finite)."""

    checkpoints: pathlib.Path
    dump: pathlib.Path


def train_stage(
    stage: Stage,
    recipe: Recipe,
    files: StageFiles,
    *,
    start: Callable[[], Params],
    key: Array,
    rows: Rows,
    held_out: Rows | None,
    tracker: Tracker,
    stop: StopSignal,
    console: Console,
    stop_after: int | None = None,
) -> StageResult:
    """Trains a stage to its end, from its newest checkpoint if there is one.

    Args:
        start: gives the parameters the stage begins with; called only if there is no checkpoint.
        key: of the stage's random numbers.
        held_out: rows for the held-out loss, or None.
        stop_after: end, saved, after so many steps of this call.

    Raises:
        Preempted: a stop was requested; the state is saved.
        NonFiniteError: the loss or a gradient was not finite; the update was withheld and the sample ids were dumped.
        InputError: the data or a checkpoint cannot be used.
    """
    mesh = sharding.make_mesh(recipe.mesh)
    sharding.check(dict(mesh.shape), stage)
    kept = Checkpoints(files.checkpoints, keep_last=recipe.checkpoint.keep_last, keep_best=recipe.checkpoint.keep_best)
    with jax.set_mesh(mesh), kept, Watchdog(recipe.logging.hang_timeout) as watchdog:
        loop = _Loop(stage, recipe, files, mesh, kept, rows, held_out, tracker, stop, watchdog, console)
        loop.restore_or_start(start, key)
        return loop.run(stop_after)


class _Loop:
    """The moving parts of one stage's training."""

    def __init__(
        self,
        stage: Stage,
        recipe: Recipe,
        files: StageFiles,
        mesh: Mesh,
        checkpoints: Checkpoints,
        rows: Rows,
        held_out: Rows | None,
        tracker: Tracker,
        stop: StopSignal,
        watchdog: Watchdog,
        console: Console,
    ):
        self.stage, self.recipe, self.files, self.mesh, self.checkpoints = stage, recipe, files, mesh, checkpoints
        self.rows, self.held_out, self.tracker, self.stop, self.watchdog, self.console = rows, held_out, tracker, stop, watchdog, console
        self.structure, self.shapes = parameters.abstract(stage.model)
        self.shardings, notes = sharding.parameter_shardings(self.shapes, parameters.logical_axes(stage.model), mesh)
        for note in notes:
            logging.warning("%s", note)
        self.step_flops = flops.step_flops(stage.model, stage).total
        self.compilations = 0

    # Beginning

    def restore_or_start(self, start: Callable[[], Params], key: Array) -> None:
        """Takes up the newest checkpoint, or the parameters that `start` makes."""
        create = lambda params: training_state.create(params, self.stage, key)  # noqa: E731
        abstract = jax.eval_shape(create, self.shapes)
        shardings = sharding.state_shardings(abstract, self.shardings, self.mesh)
        abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
        restored = self.checkpoints.restore_latest(abstract)
        metadata: dict[str, Any] = {} if restored is None else restored.metadata
        self.chrono = Chrono(metadata.get("seconds"))
        self.step, self.row = (0, 0) if restored is None else (restored.step, restored.row)
        self.tokens: int = metadata.get("tokens", 0)
        self.window = metadata.get("window")  # metrics since the last log, as numbers; see `_pack`
        self.held_out_loss: float | None = metadata.get("held_out_loss")
        self.evaluated_at: int = metadata.get("evaluated_at", -1)
        self.merged: metrics.StepMetrics | None = None  # since the last log
        self.latest: tuple[metrics.StepMetrics, int] | None = None  # of the newest step, not looked at yet
        self.rows.skips.restore(metadata.get("skipped", {}))
        self.state: TrainState = jax.device_put(create(start()), shardings) if restored is None else restored.state
        self.train_step = make_train_step(self.structure, self.stage, shardings)
        self.evaluation_step = make_evaluation_step(self.structure)
        self.tracker.rewind(self.stage.name, self.step)

    # The loop

    def run(self, stop_after: int | None) -> StageResult:
        last = self.stage.steps if stop_after is None else min(self.stage.steps, self.step + stop_after)
        self.progress = StageProgress(self.stage.name, self.stage.steps, self.step, self.console)
        if self.step:
            self.progress.note(f"going on from step {self.step} of {self.stage.steps}")
        with self.progress, batches(self.rows, self.stage.batch_size, self.row, self.stage.data.workers) as data:
            self._start_window(self.step)
            self._evaluate_if_due()  # a stop may have cut the evaluation of this step short
            while self.step < last:
                batch = self._next(data)
                self._take_step(batch)
                self._log_if_due()
                self._evaluate_if_due()
                self._save_if_due()
                self._stop_if_requested()
            self._save()
        finished = self.step >= self.stage.steps
        return StageResult(
            params=self.state.params,
            steps=self.step,
            samples=self.row,
            tokens=self.tokens,
            seconds=self.chrono.seconds,
            flops=self.step_flops * self.step,
            held_out_loss=self.held_out_loss if finished else None,
            finished=finished,
        )

    def _next(self, data: Iterator[tuple[Batch, int]]) -> Batch:
        with self.chrono.charge("input"):
            batch, row = next(data)
        assert row == self.row, (row, self.row)
        self.tokens += int(np.count_nonzero(batch.segments))
        return sharding.place_batch(batch, self.mesh)

    def _take_step(self, batch: Batch) -> None:
        first = self.compilations == 0
        with self.chrono.charge("compile" if first else "step"):
            self.state, new = self.train_step(self.state, batch)
            if first:
                jax.block_until_ready(new)
        self._count_compilations()
        with self.chrono.charge("step"):
            self._check_finite(self.latest)  # of the step before: the device is busy with this one meanwhile
        self.latest = (new, self.step)
        restored, self.window = self.window, None
        self.merged = new if self.merged is None else metrics.merge(self.merged, new)
        if restored is not None:
            self.merged = metrics.merge(_unpack(restored, new), self.merged)
        self.row += self.stage.batch_size
        self.step += 1
        self.progress.advance(self.step)
        self.watchdog.beat()

    def _count_compilations(self) -> None:
        count = self.train_step._cache_size()  # type: ignore[attr-defined]
        if self.compilations and count > self.compilations:
            self.progress.note(f"the step was compiled again (version {count}): a batch had other shapes")
        elif not self.compilations:
            self.progress.note(f"first batch after {self.chrono.seconds['input']:.1f} s, compiled in {self.chrono.seconds['compile']:.1f} s")
            self._start_window(self.step + 1)  # speed is that of the steps after the compilation
        self.compilations = count

    def _check_finite(self, latest: tuple[metrics.StepMetrics, int] | None) -> None:
        if latest is None or not int(latest[0].nonfinite_steps.compute()):
            return
        found, step = latest
        what = "loss" if int(found.nonfinite_steps.loss) else "gradient"
        first = self.row - (self.step - step) * self.stage.batch_size
        samples = [self.rows.sample_ids(row) for row in range(first, first + self.stage.batch_size)]
        self.files.dump.write_text(
            json.dumps({"stage": self.stage.name, "step": step + 1, "what": what, "metrics": metrics.summary(found), "samples": samples})
        )
        raise NonFiniteError(
            f"The {what} of step {step + 1} of stage {self.stage.name!r} is not finite. Its update was not applied; the last saved state is "
            f"good. The samples of the batch are listed in {self.files.dump}."
        )

    # Logging

    def _start_window(self, step: int) -> None:
        self.window_start = (step, self.tokens, self.chrono.seconds)

    def _log_if_due(self) -> None:
        if self.step % self.recipe.logging.every and self.step != self.stage.steps:
            return
        assert self.merged is not None
        with self.chrono.charge("step"):
            values = metrics.summary(self.merged)
        values |= self._speed() | {f"skipped/{cause}": float(count) for cause, count in self.rows.skipped.items()}
        self.merged = None
        self._start_window(self.step)
        self._log(values)

    def _speed(self) -> dict[str, float]:
        step, tokens, seconds = self.window_start
        steps, spent = self.step - step, {cause: now - seconds[cause] for cause, now in self.chrono.seconds.items()}
        training = spent["input"] + spent["step"]
        if steps < 1 or not training:
            return {}
        speed = {
            "steps_per_second": steps / training,
            "images_per_second": steps * self.stage.batch_size * self.stage.data.images_per_row / training,
            "tokens_per_second": (self.tokens - tokens) / training,
        }
        peak = self._peak()
        if peak:
            speed["mfu"] = flops.mfu(self.step_flops, training / steps, self.mesh.size, peak)
        whole = sum(spent.values())
        return speed | {f"time_share/{cause}": value / whole for cause, value in spent.items()}

    def _peak(self) -> float | None:
        if not hasattr(self, "_peak_flops"):
            self._peak_flops = self.recipe.logging.peak_flops or flops.peak_flops(self.mesh.devices.flat[0])
            if self._peak_flops:
                self.progress.note(f"{flops.MFU_FORMULA}; peak {self._peak_flops / 1e12:.3g} TFLOP/s a device")
        return self._peak_flops

    def _log(self, values: dict[str, float]) -> None:
        self.tracker.log(self.stage.name, self.step, values)
        self.progress.log(self.step, values)

    # Held-out loss, saving, stopping

    def _evaluate_if_due(self) -> None:
        every = self.recipe.logging.evaluate_every
        due = self.step == self.stage.steps or (every > 0 and self.step > 0 and self.step % every == 0)
        if self.held_out is None or not due or self.evaluated_at == self.step:
            return
        total: metrics.TokenMetrics | None = None
        params = self.state.params
        with self.chrono.charge("evaluation"), batches(self.held_out, self.stage.batch_size, 0, 0) as data:
            for batch, _ in data:
                self._stop_if_requested()
                new = self.evaluation_step(params, sharding.place_batch(batch, self.mesh))
                total = new if total is None else metrics.merge(total, new)
                self.watchdog.beat()
        assert total is not None
        values = metrics.summary(total)
        self.held_out_loss, self.evaluated_at = values["loss"], self.step
        self._log({f"holdout/{name}": value for name, value in values.items()})

    def _save_if_due(self) -> None:
        if self.step % self.recipe.checkpoint.every == 0:
            self._save()

    def _save(self) -> None:
        with self.chrono.charge("save"):
            self._check_finite(self.latest)
            self.latest = None
            metadata = {
                "tokens": self.tokens,
                "window": self.window if self.merged is None else _pack(self.merged),
                "held_out_loss": self.held_out_loss,
                "evaluated_at": self.evaluated_at,
                "finished": self.step >= self.stage.steps,
                "seconds": self.chrono.seconds,
                "skipped": self.rows.skips.state(),
            }
            score = self.held_out_loss if self.evaluated_at == self.step else None
            self.checkpoints.save(self.step, self.state, self.row, metadata, score)

    def _stop_if_requested(self) -> None:
        if self.stop.requested:
            self._save()
            self.checkpoints.close()
            raise Preempted(
                f"Stopped at step {self.step} of stage {self.stage.name!r}; the state is saved. The same command goes on from here."
            )


def _pack(merged: metrics.StepMetrics) -> list[float]:
    """Metrics as numbers that JSON keeps exactly."""
    return [np.asarray(leaf).item() for leaf in jax.tree.leaves(jax.device_get(merged))]


def _unpack(values: list[float], like: metrics.StepMetrics) -> metrics.StepMetrics:
    leaves, structure = jax.tree.flatten(like)
    assert len(values) == len(leaves)
    return jax.tree.unflatten(structure, [np.asarray(value, leaf.dtype) for value, leaf in zip(values, leaves, strict=True)])


def finished_params(checkpoints: pathlib.Path, stage: Stage) -> bool:
    """Whether a stage's last checkpoint is there."""
    try:
        return (checkpoints / str(stage.steps)).is_dir()
    except OSError as error:
        raise InputError(f"{checkpoints} cannot be read: {error.strerror}.") from None
