"""The training loop. It knows stages, states and rows; it knows no paper.

An iteration is: take the next batch, step, look at the step before, and, where due, log, measure the held-out loss, and save. In this order
an accelerator never waits for the host; on a CPU, the step before is looked at first, so that only one is under way. A stop request is
answered between two steps: the state is saved and `Preempted` is raised.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from mmjax.base import host
from mmjax.base.signals import StopSignal, Watchdog
from mmjax.data.loader import Batches, batches
from mmjax.data.packing.rows import Rows
from mmjax.distributed import mesh as sharding
from mmjax.errors import InputError, Preempted
from mmjax.models import parameters
from mmjax.recipe.recipe import Recipe, Stage
from mmjax.recipe.serialization import digest
from mmjax.training import flops, metrics
from mmjax.training.checkpoint import Checkpoints, Restored
from mmjax.training.logging import HELD_OUT, Counts, StageProgress, Tracker, Window
from mmjax.training.result import (
    Chrono,
    Position,
    StageFiles,
    StageResult,
    abstract_state,
    check_finite,
)
from mmjax.training.state import InitialParams, TrainState, begin
from mmjax.training.step import is_done, make_evaluation_step, make_train_step, one_at_a_time
from mmjax.typing import Array, Batch


def train_stage(
    stage: Stage,
    recipe: Recipe,
    files: StageFiles,
    *,
    start: Callable[[Mesh], InitialParams],
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
        start: gives, for the mesh, what the stage begins with; called only if there is no checkpoint.
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
    kept = Checkpoints(
        files.checkpoints,
        keep_last=recipe.checkpoint.keep_last,
        keep_best=recipe.checkpoint.keep_best,
    )
    with jax.set_mesh(mesh), Watchdog(recipe.logging.hang_timeout) as watchdog, kept:
        loop = _Loop(
            stage, recipe, files, mesh, kept, rows, held_out, tracker, stop, watchdog, console
        )
        loop.restore_or_start(start, key)
        with loop.progress:
            return loop.run(stop_after)


@dataclasses.dataclass
class _Loop:
    """The moving parts of one stage's training."""

    stage: Stage
    recipe: Recipe
    files: StageFiles
    mesh: Mesh
    checkpoints: Checkpoints
    rows: Rows
    held_out: Rows | None
    tracker: Tracker
    stop: StopSignal
    watchdog: Watchdog
    console: Console

    def restore_or_start(self, start: Callable[[Mesh], InitialParams], key: Array) -> None:
        """Takes up the newest checkpoint, or begins with what `start` gives."""
        abstract = abstract_state(self.stage, self.mesh, key)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        restored = self.checkpoints.restore_latest(abstract)
        self._restore_counters(restored)
        self.state: TrainState = (
            restored.state if restored else begin(start(self.mesh), self.stage, key, shardings)
        )
        model_def, _ = parameters.abstract(self.stage.model)
        self.train_step = make_train_step(model_def, self.stage, shardings)
        self.evaluation_step = make_evaluation_step(model_def)

    def _restore_counters(self, restored: Restored | None) -> None:
        """Everything but the arrays, as `_metadata` has saved it."""
        saved: dict[str, Any] = restored.metadata if restored else {}
        self.digest = digest(self.recipe)
        if saved.get("config_digest", self.digest) != self.digest:
            raise InputError(
                f"The checkpoints in {self.files.checkpoints} were made by another recipe."
            )
        self.at = Position(**saved.get("position", {}))
        self.chrono = Chrono(saved.get("seconds"), saved.get("device_seconds"), self.mesh.size)
        self.window = Window(self.chrono, saved.get("window"))
        self.rows.skips.restore(saved.get("skipped", {}))
        self.pending_step: tuple[metrics.StepMetrics, int] | None = (
            None  # metrics of the newest step, and the first row of its batch
        )
        self.programs = 0  # that the step was compiled to
        self.peak: float | None = None
        self.step_flops = flops.step_flops(self.stage.model, self.stage).total
        self.progress = StageProgress(self.stage.name, self.stage.steps, self.at.step, self.console)
        self.tracker.rewind(
            self.stage.name, self.at.step, evaluated=self.at.evaluated_at == self.at.step
        )

    def run(self, stop_after: int | None) -> StageResult:
        """Trains to the end of the stage, or for `stop_after` steps."""
        last = (
            self.stage.steps
            if stop_after is None
            else min(self.stage.steps, self.at.step + stop_after)
        )
        if self.at.step:
            self.progress.note(f"going on from step {self.at.step} of {self.stage.steps}")
        self._stop_if_requested()
        self._evaluate_if_due()  # a stop may have cut the evaluation of this step short
        if self.at.step < last:
            with batches(
                self.rows, self.stage.batch_size, self.at.row, self.stage.data.workers
            ) as data:
                self._first_step(data)
                self._do_what_is_due()
                while self.at.step < last:
                    self._step(*self._next(data))
                    self._do_what_is_due()
        self._save()
        return StageResult.of(
            self.at,
            self.stage,
            self.state.params,
            self.chrono,
            self.step_flops * self.at.step,
            self.rows,
        )

    def _first_step(self, data: Batches) -> None:
        """The step that compiles the program; speed is measured after it."""
        before = self.chrono.seconds
        batch, counts = self._next(data)
        self.progress.note(
            f"first batch in {self.chrono.seconds['input'] - before['input']:.1f} s, compiling the step ..."
        )
        self._step(batch, counts, "compile")
        self._wait_for_step("compile")
        host.set_holes_aside()
        self.progress.note(
            f"compiled in {self.chrono.seconds['compile'] - before['compile']:.1f} s"
        )
        self.peak = self.recipe.logging.peak_flops or flops.peak_flops(self.mesh.devices.flat[0])
        self.progress.explain_mfu(self.peak)
        self.window.restart_clock()

    def _next(self, data: Batches) -> tuple[Batch, Counts]:
        with self.chrono.charge("input", in_the_end=self._what_was_waited_for):
            batch, row = next(data)
            assert row == self.at.row, (row, self.at.row)
            counts = Counts(
                1, int(np.count_nonzero(batch.segment_ids)), int(np.count_nonzero(batch.image_mask))
            )
            return sharding.place_batch(batch, self.mesh), counts

    def _what_was_waited_for(self) -> str:
        """For a batch: input if no step is under way when it comes, though one may have been before; never too little, therefore."""
        return "input" if self.pending_step is None or is_done(self.pending_step[0]) else "step"

    def _step(self, batch: Batch, counts: Counts, cause: str = "step") -> None:
        with self.chrono.charge(cause):
            if one_at_a_time():
                self._wait_for_step(cause)
            self.state, new = self.train_step(self.state, batch)
            self._wait_for_step(
                cause
            )  # the step before, unless that was done: the device is busy with this one meanwhile
        self.pending_step = (new, self.at.row)
        self.window.add(new, counts)
        self.at.step += 1
        self.at.row += self.stage.batch_size
        self.at.tokens += counts.tokens
        self._count_programs()
        self.progress.advance(self.at.step)
        self.watchdog.beat()

    def _count_programs(self) -> None:
        before, self.programs = self.programs, self.train_step._cache_size()  # type: ignore[attr-defined]
        if before and self.programs > before:
            self.progress.note(
                f"step {self.at.step} was compiled anew (program {self.programs}): its batch had other shapes"
            )

    def _wait_for_step(self, cause: str = "step") -> None:
        """Waits for the newest step, unless that was done."""
        if self.pending_step is not None:
            (found, row), self.pending_step = self.pending_step, None
            with self.chrono.charge(cause):
                check_finite(found, self.stage, self.rows, row, self.files.dump)

    def _do_what_is_due(self) -> None:
        """Between two steps, and in this order: a save holds what was logged and measured after its step."""
        self._log_if_due()
        self._evaluate_if_due()
        if self.at.step % self.recipe.checkpoint.every == 0:
            self._save()
        self._stop_if_requested()

    def _log_if_due(self) -> None:
        if self.at.step % self.recipe.logging.every and self.at.step != self.stage.steps:
            return
        self._wait_for_step()
        values, (rates, seconds) = self.window.summary(), self.window.speed()
        values |= {f"skipped/{cause}": float(count) for cause, count in self.rows.skipped.items()}
        if seconds and self.peak:
            rates["mfu"] = flops.mfu(self.step_flops, seconds, self.mesh.size, self.peak)
        self.window = Window(self.chrono)
        self._log(values | rates)

    def _log(self, values: dict[str, float]) -> None:
        self.tracker.log(self.stage.name, self.at.step, values)
        self.progress.log(self.at.step, values)

    def _evaluate_if_due(self) -> None:
        every, step = self.recipe.logging.evaluate_every, self.at.step
        due = step == self.stage.steps or (every > 0 and step > 0 and step % every == 0)
        if self.held_out is not None and due and self.at.evaluated_at != step:
            self._wait_for_step()
            with self.chrono.charge("evaluation"):
                values = metrics.summary(self._evaluate(self.held_out))
            self.at.held_out_loss, self.at.evaluated_at = values["loss"], step
            self._log({HELD_OUT + name: value for name, value in values.items()})

    def _evaluate(self, rows: Rows) -> metrics.TokenMetrics:
        params, total = self.state.params, None
        programs = self.evaluation_step._cache_size()  # type: ignore[attr-defined]
        with batches(rows, self.stage.batch_size, 0, 0) as data:
            for batch, _ in data:
                self._stop_if_requested()
                new = self.evaluation_step(params, sharding.place_batch(batch, self.mesh))
                jax.block_until_ready(
                    total
                )  # one batch is under way while the next is read, and no more
                total = new if total is None else metrics.merge(total, new)
                self.watchdog.beat()
        assert total is not None
        if self.evaluation_step._cache_size() > programs:  # type: ignore[attr-defined]
            host.set_holes_aside()
        return total

    def _save(self) -> None:
        self._wait_for_step()
        with self.chrono.charge("save"):
            score = self.at.held_out_loss if self.at.evaluated_at == self.at.step else None
            self.checkpoints.save(self.at.step, self.state, self.at.row, self._metadata(), score)

    def _metadata(self) -> dict[str, Any]:
        seconds = self.chrono.seconds
        return {
            "config_digest": self.digest,
            "position": dataclasses.asdict(self.at),
            "window": self.window.state(),
            "skipped": self.rows.skips.state(),
            "seconds": seconds,
            "device_seconds": self.chrono.device_seconds(seconds),
        }

    def _stop_if_requested(self) -> None:
        if self.stop.requested:
            self._save()
            self.checkpoints.close()
            where = f"at step {self.at.step} of stage {self.stage.name!r}"
            raise Preempted(
                f"Stopped {where}; the state is saved. The same command goes on from here."
            )
