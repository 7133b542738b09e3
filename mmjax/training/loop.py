"""The training loop: one stage, from its first parameters or its newest checkpoint to the end of its steps.

It knows stages, states and rows; it knows no transition and no paper. An iteration is: take the next batch, step, look at the step before,
and, where due, log, measure the held-out loss, and save. In this order an accelerator never waits for the host; on a CPU, the step before
is looked at first, so that only one is under way. A stop request is answered between two steps: the state is saved and `Preempted` is
raised. While the loop waits for data, nothing is under way, and a stop ends the wait.
"""

import collections
import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from mmjax.base import host
from mmjax.base.signals import StopSignal, Watchdog
from mmjax.data import examples
from mmjax.data.loader import Batches, batches
from mmjax.data.packing.rows import Rows
from mmjax.distributed.mesh import check_layout, make_mesh, place_batch
from mmjax.errors import InputError, NonFiniteError, Preempted
from mmjax.models import parameters
from mmjax.recipe.recipe import Recipe, Stage
from mmjax.recipe.serialization import digest
from mmjax.training import flops, metrics
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.logging import HELD_OUT, Counts, StageProgress, Tracker, Window
from mmjax.training.metrics import Chrono, StepMetrics, TokenMetrics
from mmjax.training.state import InitialParams, TrainState, abstract_state, begin, overview
from mmjax.training.step import is_done, make_evaluation_step, make_train_step, one_at_a_time
from mmjax.typing import NO_TARGET, Array, Batch, Params

NOTHING_LOST = (
    "Stopped before stage {!r}; what was done is saved. The same command goes on from here."
)


@dataclasses.dataclass(frozen=True)
class StageFiles:
    """Where a stage keeps things.

    Attributes:
        checkpoints: a folder of its own.
        parameters: tables of its parameters (`training.state.overview`).
        dump: written if the loss is not finite.
    """

    checkpoints: pathlib.Path
    parameters: pathlib.Path
    dump: pathlib.Path


@dataclasses.dataclass
class Position:
    """Where a stage stands; part of its checkpoints.

    Attributes:
        step: steps that were taken; row: index of the next data row.
        tokens: that were trained on, text and visual, padding not counted.
        silent: steps without a target, as none of their samples could be used.
        held_out_loss: nats per target when it was last measured, which was after step `evaluated_at`.
    """

    step: int = 0
    row: int = 0
    tokens: int = 0
    silent: int = 0
    held_out_loss: float | None = None
    evaluated_at: int | None = None


@dataclasses.dataclass(frozen=True)
class StageResult:
    """What a stage did, over all the processes that worked on it.

    Attributes:
        samples: rows that were trained on; tokens: text and visual ones in them, padding not counted.
        seconds: wall time by cause (`metrics.CAUSES`).
        devices: of the mesh that the last process trained on; device_seconds: wall time times devices, of every process.
        flops: of all steps, by the rules of `training.flops`.
        held_out_loss: nats per target at the end; None: nothing is held out, or the stage is not finished.
        finished: all steps are done.
        skipped: unusable training samples, by cause; skip_examples: the first of each cause, and what is wrong with it.
    """

    params: Params
    steps: int
    samples: int
    tokens: int
    seconds: dict[str, float]
    devices: int
    device_seconds: float
    flops: float
    held_out_loss: float | None
    finished: bool
    skipped: dict[str, int]
    skip_examples: dict[str, str]


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
    inputs: Mapping[str, str] | None = None,
) -> StageResult:
    """Trains a stage to its end, from its newest checkpoint if there is one.

    Args:
        start: gives, for the mesh, what the stage begins with; called only if there is no checkpoint.
        key: of the stage's random numbers.
        held_out: rows for the held-out loss, or None.
        stop_after: end, saved, after so many steps of this call.
        inputs: digests of what the run reads, by name, for the checkpoints.

    Raises:
        Preempted: a stop was requested; the state is saved.
        NonFiniteError: the loss or a gradient was not finite; the update was withheld and the sample ids were dumped.
        InputError: the data or a checkpoint cannot be used.
    """
    mesh, kept = make_mesh(recipe.mesh), recipe.checkpoint
    check_layout(dict(mesh.shape), stage)
    checkpoints = Checkpoints(files.checkpoints, keep_last=kept.keep_last, keep_best=kept.keep_best)
    with jax.set_mesh(mesh), Watchdog(recipe.logging.hang_timeout) as watchdog, checkpoints:
        abstract = abstract_state(stage, mesh, key)
        files.parameters.write_text(overview(abstract), encoding="utf-8")
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        restored = checkpoints.restore_latest(abstract)
        saved: dict[str, Any] = restored.metadata if restored else {}  # as `_Loop._save` wrote it
        if saved.get("config_digest", digest(recipe)) != digest(recipe):
            raise InputError(f"The checkpoints in {files.checkpoints} were made by another recipe.")
        at = Position(**saved.get("position", {}))
        chrono = Chrono(saved.get("seconds"), saved.get("device_seconds", 0.0), mesh.size)
        rows.skips.restore(saved.get("skipped", {}))
        tracker.rewind(stage.name, at.step, evaluated=at.evaluated_at == at.step)
        model_def, _ = parameters.abstract(stage.model)

        def first_state() -> TrainState:
            with stop.at_once(NOTHING_LOST.format(stage.name)):
                return begin(start(mesh), stage, key, shardings)

        programs: collections.Counter[str] = collections.Counter()
        loop = _Loop(
            stage=stage,
            recipe=recipe,
            files=files,
            mesh=mesh,
            rows=rows,
            held_out=held_out,
            tracker=tracker,
            progress=StageProgress(stage.name, stage.steps, at.step, console),
            stop=stop,
            watchdog=watchdog,
            checkpoints=checkpoints,
            at=at,
            chrono=chrono,
            window=Window(chrono, saved.get("window")),
            state=restored.state if restored else first_state(),
            train_step=make_train_step(
                model_def, stage, shardings, on_trace=lambda: programs.update(["step"])
            ),
            evaluation_step=make_evaluation_step(
                model_def, on_trace=lambda: programs.update(["evaluation"])
            ),
            programs=programs,
            step_flops=flops.step_flops(stage.model, stage).total,
            inputs=dict(inputs or {}),
        )
        with loop.progress:
            return loop.run(stop_after)


@dataclasses.dataclass
class _Loop:
    """The moving parts of one stage's training.

    Attributes:
        programs: how many were compiled, by name: "step" and "evaluation".
        pending_step: metrics of the newest step, and the first row of its batch; None once they were looked at.
        peak: FLOP/s of a device, if known; measured after the first step.
    """

    stage: Stage
    recipe: Recipe
    files: StageFiles
    mesh: Mesh
    rows: Rows
    held_out: Rows | None
    tracker: Tracker
    progress: StageProgress
    stop: StopSignal
    watchdog: Watchdog
    checkpoints: Checkpoints
    at: Position
    chrono: Chrono
    window: Window
    state: TrainState
    train_step: Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
    evaluation_step: Callable[[Params, Batch], TokenMetrics]
    programs: collections.Counter[str]
    step_flops: float
    inputs: dict[str, str]
    pending_step: tuple[StepMetrics, int] | None = None
    peak: float | None = None

    def run(self, stop_after: int | None) -> StageResult:
        """Trains to the end of the stage, or for `stop_after` steps."""
        stage, at = self.stage, self.at
        last = stage.steps if stop_after is None else min(stage.steps, at.step + stop_after)
        if at.step:
            self.progress.note(f"going on from step {at.step} of {stage.steps}")
        self._stop_if_requested()
        self._evaluate_if_due()  # a stop may have cut the evaluation of this step short
        if at.step < last:
            with self._batches(self.rows, at.row, stage.data.workers) as data:
                self._first_step(data)
                self._do_what_is_due()
                while at.step < last:
                    self._step(*self._next(data))
                    self._do_what_is_due()
        if at.step >= stage.steps:
            self.rows.skips.check(final=True)
            self._check_silence(final=True)
        self._save(last=True)
        seconds, finished = self.chrono.seconds, at.step >= stage.steps
        return StageResult(
            params=self.state.params,
            steps=at.step,
            samples=at.row,
            tokens=at.tokens,
            seconds=seconds,
            devices=self.chrono.devices,
            device_seconds=self.chrono.device_seconds(seconds),
            flops=self.step_flops * at.step,
            held_out_loss=at.held_out_loss if finished else None,
            finished=finished,
            skipped=self.rows.skipped,
            skip_examples=self.rows.skip_examples,
        )

    def _first_step(self, data: Batches) -> None:
        """The step that compiles the program; speed is measured after it."""
        before = self.chrono.seconds
        batch, counts = self._next(data)
        waited = self.chrono.seconds["input"] - before["input"]
        self.progress.note(f"first batch in {waited:.1f} s, compiling the step ...")
        self._step(batch, counts, "compile")
        self._wait_for_step("compile")
        host.after_compilation()
        compiled = self.chrono.seconds["compile"] - before["compile"]
        self.progress.note(f"compiled in {compiled:.1f} s")
        self.peak = self.recipe.logging.peak_flops or flops.peak_flops(self.mesh.devices.flat[0])
        self.progress.explain_mfu(self.peak)
        self.window.restart_clock()

    def _batches(self, rows: Rows, first_row: int, workers: int) -> Batches:
        """Batches of the stage. A wait for one is left at once when a stop is requested, with an exception that `_taken` answers."""

        def waiting() -> contextlib.AbstractContextManager[None]:
            return self.stop.at_once("Stopped while waiting for data.", saves=True)

        return batches(rows, self.stage.batch_size, first_row, workers, None, waiting)

    def _taken(self, data: Batches) -> tuple[Batch, int] | None:
        """The next batch and its first row, or None after the last."""
        try:
            return next(data, None)
        except (Preempted, KeyboardInterrupt):
            self._stop_if_requested()
            raise

    def _next(self, data: Batches) -> tuple[Batch, Counts]:
        """The next batch on the mesh, and what is in it."""

        def cause() -> str:
            """Input if no step is under way when the batch comes, though one may have been before; never too little, therefore."""
            return "input" if self.pending_step is None or is_done(self.pending_step[0]) else "step"

        with self.chrono.charge("input", in_the_end=cause):
            taken = self._taken(data)
            assert taken is not None
            batch, row = taken
            assert row == self.at.row, (row, self.at.row)
            if not np.any(batch.targets != NO_TARGET):
                self.at.silent += 1
                self._check_silence()
            tokens, images = (
                int(np.count_nonzero(array)) for array in (batch.segment_ids, batch.image_mask)
            )
            return place_batch(batch, self.mesh), Counts(1, tokens, images)

    def _step(self, batch: Batch, counts: Counts, cause: str = "step") -> None:
        programs = self.programs["step"]
        with self.chrono.charge(cause):
            if one_at_a_time():
                self._wait_for_step(cause)
            self.state, new = self.train_step(self.state, batch)
            # The step before, unless that was done: the device is busy with this one meanwhile.
            self._wait_for_step(cause)
        self.pending_step = (new, self.at.row)
        self.window.add(new, counts)
        self.at.step += 1
        self.at.row += self.stage.batch_size
        self.at.tokens += counts.tokens
        if 0 < programs < self.programs["step"]:
            self.progress.note(
                f"step {self.at.step} was compiled anew (program {self.programs['step']}): its batch had other shapes"
            )
        self.progress.advance(self.at.step)
        self.watchdog.beat()

    def _check_silence(self, *, final: bool = False) -> None:
        """Raises InputError if more steps had no target than the budget for unusable samples allows: of MINIMUM steps, or of those that
        were taken if these are more. final: of a whole stage, of which not all may be so, whatever the budget."""
        silent, budget = self.at.silent, self.stage.data.skip_budget
        steps = self.at.step if final else max(self.at.step + 1, examples.MINIMUM)
        if silent > budget * steps or (final and silent == steps):
            skipped, shown = self.rows.skipped, examples.listed(self.rows.skip_examples)
            raise InputError(
                f"Stage {self.stage.name!r}: {silent:,} of {self.at.step + (not final):,} steps had no target, as none of their samples "
                f"could be used ({examples.describe(skipped)}). At most skip_budget={budget:g} may be so, never all. For example:\n{shown}"
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
        """Measures the held-out loss, unless that was done after this step."""
        every, step = self.recipe.logging.evaluate_every, self.at.step
        due = step == self.stage.steps or (every > 0 and step > 0 and step % every == 0)
        if self.held_out is None or not due or self.at.evaluated_at == step:
            return
        self._wait_for_step()
        with self.chrono.charge("evaluation"):
            params, total, programs = self.state.params, None, self.programs["evaluation"]
            with self._batches(self.held_out, 0, 0) as data:
                while (taken := self._taken(data)) is not None:
                    self._stop_if_requested()
                    batch, _ = taken
                    new = self.evaluation_step(params, place_batch(batch, self.mesh))
                    # One batch is under way while the next is read, and no more.
                    jax.block_until_ready(total)
                    total = new if total is None else metrics.merge(total, new)
                    self.watchdog.beat()
            assert total is not None
            if not int(total.loss.count):
                raise InputError(
                    "The held-out loss cannot be measured: of the held-out samples, none can be used. For example:\n"
                    + examples.listed(self.held_out.skip_examples)
                )
            if self.programs["evaluation"] > programs:
                host.after_compilation()
            values = metrics.summary(total)
        self.at.held_out_loss, self.at.evaluated_at = values["loss"], step
        self._log({HELD_OUT + name: value for name, value in values.items()})

    def _save(self, *, last: bool = False) -> None:
        """Saves in the background. A save that fails is made up for by the next; the last one is waited for, and tried twice.

        Raises:
            InputError: the last one failed.
        """
        self._wait_for_step()
        for _ in range(2 if last else 1):
            with self.chrono.charge("save"):
                self.checkpoints.wait()  # for the save before, which took time of this state
                seconds = self.chrono.seconds
                metadata = {
                    "config_digest": digest(self.recipe),
                    "inputs": self.inputs,
                    "position": dataclasses.asdict(self.at),
                    "window": self.window.state(),
                    "skipped": self.rows.skips.state(),
                    "seconds": seconds,
                    "device_seconds": self.chrono.device_seconds(seconds),
                }
                score = self.at.held_out_loss if self.at.evaluated_at == self.at.step else None
                self.checkpoints.save(self.at.step, self.state, self.at.row, metadata, score)
            if not last or self.checkpoints.wait():
                return
        raise InputError(
            f"The state after step {self.at.step} of stage {self.stage.name!r} cannot be saved in {self.files.checkpoints}: "
            f"{self.checkpoints.failure}. What was saved before is good; the same command goes on from there."
        )

    def _stop_if_requested(self) -> None:
        if self.stop.requested:
            self._save(last=True)
            where = f"at step {self.at.step} of stage {self.stage.name!r}"
            raise Preempted(
                f"Stopped {where}; the state is saved. The same command goes on from here."
            )


def check_finite(
    found: StepMetrics, stage: Stage, rows: Rows, first: int, dump: pathlib.Path
) -> None:
    """Raises NonFiniteError, and writes down which samples were in the batch, if a step's loss or gradient was not finite.

    Args:
        found: of one step. Its two flags are read as they are: a computation with them would queue behind the step after it.
        first: the first row of its batch; dump: the file to write.
    """
    bad_loss, bad_gradient = int(found.nonfinite_steps.loss), int(found.nonfinite_steps.gradient)
    if not bad_loss and not bad_gradient:
        return
    content = {
        "stage": stage.name,
        "step": first // stage.batch_size + 1,
        "what": "loss" if bad_loss else "gradient",
        "metrics": {
            name: value if np.isfinite(value) else str(value)
            for name, value in metrics.summary(found).items()
        },
        "samples": [rows.sample_ids(row) for row in range(first, first + stage.batch_size)],
    }
    dump.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    raise NonFiniteError(
        f"The {content['what']} of step {content['step']} of stage {stage.name!r} is not finite. Its update was not applied; the last "
        f"saved state is good. The samples of the batch are listed in {dump}."
    )
