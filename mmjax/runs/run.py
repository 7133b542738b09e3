"""Trains a recipe in a workdir: stage after stage, joined by transitions; then scores and a report."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Collection, Sequence

from jax.sharding import Mesh
from rich.console import Console

from mmjax import evaluation
from mmjax.base.signals import StopSignal
from mmjax.config.checks import refuse_missing
from mmjax.data.packing.layout import preview, save_preview
from mmjax.data.packing.rows import Rows, make_rows
from mmjax.data.text.tokenizer import Tokenizer
from mmjax.distributed.mesh import make_mesh
from mmjax.errors import InputError
from mmjax.kernels.attention import prefer
from mmjax.recipe.recipe import Recipe, Stage
from mmjax.runs import initial_weights, origins
from mmjax.runs.initial_params import initial_params, stage_key
from mmjax.runs.inputs import Inputs
from mmjax.runs.score import as_scored, finish, score_end
from mmjax.runs.workdir import Summary, Workdir, read_params
from mmjax.training.logging import Tracker, make_trackers, print_line
from mmjax.training.loop import NOTHING_LOST, StageFiles, StageResult, train_stage
from mmjax.training.state import InitialParams, param_shardings
from mmjax.typing import Params


def train(
    recipe: Recipe,
    workdir: str | os.PathLike[str],
    *,
    stop_after_steps: int | None = None,
    accept_changed_data: bool = False,
    console: Console | None = None,
) -> None:
    """Trains every stage that is not finished, scores the last one and writes the report.

    Args:
        workdir: the folder of the run; the same recipe in the same folder goes on where it stopped.
        stop_after_steps: stop, saved, after so many steps of this call.
        accept_changed_data: go on although what the run has read is not what it was; the summary says so.

    Raises:
        InputError, NonFiniteError, Preempted: as their names say; what was saved stays good.
    """
    refuse_missing(recipe)
    workdir, console = Workdir(workdir), console or Console()
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            prefer(recipe.kernels.attention, deterministic=recipe.kernels.deterministic)
        )
        stop = stack.enter_context(StopSignal())
        with stop.at_once("Stopped before the run began; the same command begins it."):
            recipe, tokenizer = stack.enter_context(workdir.claim(recipe))
            origins.keep(recipe, workdir)
            recipe = as_scored(recipe, workdir, functools.partial(print_line, console))
            summary = Summary.open(workdir.summary, recipe)
            inputs = Inputs(recipe, workdir, tokenizer)
        run = _Run(recipe, workdir, tokenizer, summary, inputs, accept_changed_data, stop, console)
        variant = f":{recipe.variant}" if recipe.variant else ""
        run.say(f"{recipe.name}{variant}: {' -> '.join(recipe.stages)}, in {workdir.path}")
        for name, note in recipe.notes.items():
            run.say(f"  {name}: {note}")
        tracker = make_trackers(recipe, workdir.path)
        stack.callback(tracker.close)
        if not run.train_stages(tracker, stop_after_steps):
            return
        with stop.at_once(
            "Stopped while scoring; training is saved. The same command goes on from here."
        ):
            if not run.summary.is_scored:
                stage, mesh = list(recipe.stages.values())[-1], make_mesh(recipe.mesh)
                params = run.take_params(mesh, stage)
                score_end(recipe, workdir, run.summary, params, tokenizer, mesh, stop, console)
            finish(workdir, run.summary, run.say)


@dataclasses.dataclass
class _Run:
    """A resolved recipe that is trained in its workdir.

    Attributes:
        accept: inputs that have changed are accepted.
        params: of the newest stage that is finished; None until they are needed.
    """

    recipe: Recipe
    workdir: Workdir
    tokenizer: Tokenizer
    summary: Summary
    inputs: Inputs
    accept: bool
    stop: StopSignal
    console: Console
    params: Params | None = None

    def say(self, text: str) -> None:
        """A line for the user."""
        print_line(self.console, text)

    def train_stages(self, tracker: Tracker, budget: int | None) -> bool:
        """Trains what is not finished, at most `budget` steps of it. Returns whether everything is."""
        stages = list(self.recipe.stages.values())
        steps = {stage.name: self.workdir.newest_step(stage.name) for stage in stages}
        todo = []
        for index, stage in enumerate(stages):
            # Checkpoints of a stage that another one has followed may have been removed to save space.
            followed = any(steps[later.name] is not None for later in stages[index + 1 :])
            if not self.summary.has(stage) or not (steps[stage.name] == stage.steps or followed):
                todo.append(stage)
        if not todo:
            self.say("All stages are finished already: nothing is trained.")
        with self.before(stages[0]):
            for stage in stages:  # before anything is trained
                begun = steps[stage.name] is not None or self.summary.has(stage)
                if stage.init_from and not begun:
                    initial_weights.check(stage)
            if todo or not self.summary.is_scored:
                self.check_inputs(todo or stages[-1:])
            if not self.summary.is_scored:
                evaluation.open_images(self.recipe, self.tokenizer)
        for stage in stages:
            done = steps[stage.name] or 0
            if stage not in todo:
                self.params = None
                continue
            if budget == 0:
                self.say(
                    f"Stopped before stage {stage.name}, as asked; the same command goes on from here."
                )
                return False
            if stage is not todo[0]:
                self.check_inputs([stage])
            result = self.train_one(stage, tracker, budget)
            if not result.finished:
                self.say(
                    f"Stopped at step {result.steps} of stage {stage.name}, as asked; the same command goes on from here."
                )
                return False
            self.summary.add_stage(stage, result)
            budget = None if budget is None else max(0, budget - (result.steps - done))
            self.params = result.params
            # What the next stage drops, such as a surrogate's decoder, is held by nothing else.
            del result
        return True

    def check_inputs(self, stages: Sequence[Stage]) -> None:
        """Raises InputError if what some stages read is not what the run has read before, unless that is accepted. What nothing was trained
        on yet may change; it is said."""
        begun = [
            stage
            for stage in self.recipe.stages.values()
            if self.workdir.newest_step(stage.name) is not None or self.summary.has(stage)
        ]
        now, used = self.inputs.read(stages), self.inputs.names(begun)
        for line in self.inputs.changed(now, now.keys() - used):
            self.say(f"changed before anything was trained on it: {line}")
        changed = self.inputs.changed(now, used)
        if changed and not self.accept:
            listed = "\n".join(f"  {line}" for line in changed)
            raise InputError(
                f"What this run has read is not what it was:\n{listed}\nThe order of the data, and what is held out, would be others from "
                "here on. Put it back, or go on all the same with --accept_changed_data, which summary.json will say."
            )
        if changed:
            last = begun[-1].name
            self.summary.accept(last, self.workdir.newest_step(last) or 0, changed)
            for line in changed:
                self.say(f"accepted: {line}")
        self.inputs.keep(now)

    def train_one(self, stage: Stage, tracker: Tracker, budget: int | None) -> StageResult:
        """Trains a stage, at most `budget` steps of it. Its first row is kept as the model will read it, and shown the first time."""

        def start(mesh: Mesh) -> InitialParams:
            return initial_params(
                self.recipe,
                stage,
                mesh,
                self.workdir,
                trained=functools.partial(self.take_params, mesh),
                say=self.say,
            )

        with self.before(stage):
            rows, held_out = self.plan(stage)
        return train_stage(
            stage,
            self.recipe,
            StageFiles(
                checkpoints=self.workdir.checkpoints / stage.name,
                parameters=self.workdir.parameters(stage.name),
                dump=self.workdir.path / "nonfinite.json",
            ),
            start=start,
            key=stage_key(self.recipe, stage.name),
            rows=rows,
            held_out=held_out,
            tracker=tracker,
            stop=self.stop,
            console=self.console,
            stop_after=budget,
            inputs=self.inputs.digests,
        )

    def plan(self, stage: Stage) -> tuple[Rows, Rows | None]:
        """The rows of a stage, and those held out. What the first one looks like is shown, and kept in the workdir."""
        seed = self.recipe.seed
        rows = make_rows(stage.data, stage.model, self.tokenizer, seed)
        held_out = (
            make_rows(stage.data, stage.model, self.tokenizer, seed, "holdout")
            if stage.data.holdout
            else None
        )
        self.say(f"{stage.name}: {rows.statistics()}")
        row, _ = rows.load(0)
        text, path = preview(row, self.tokenizer), self.workdir.preview(stage.name, ".txt")
        if not path.exists():
            self.say(f"{stage.name}: its first row (tokens with loss in brackets)\n{text}")
        path.write_text(text + "\n", encoding="utf-8")
        save_preview(row, self.tokenizer, self.workdir.preview(stage.name, ".png"))
        return rows, held_out

    def take_params(
        self, mesh: Mesh, stage: Stage, needed: Collection[str] | None = None
    ) -> Params:
        """Parameters of a finished stage, or those that are needed of them, laid out on the mesh: those in memory, which are given away, or
        else of its last checkpoint."""
        params, self.params = self.params, None
        if params is None:
            folder = self.workdir.checkpoints / stage.name / str(stage.steps)
            return read_params(folder, self.recipe, param_shardings(stage.model, mesh, needed))
        return {path: params[path] for path in params if needed is None or path in needed}

    def before(self, stage: Stage) -> contextlib.AbstractContextManager[None]:
        """What may be left at any moment, when a stop is requested."""
        return self.stop.at_once(NOTHING_LOST.format(stage.name))
