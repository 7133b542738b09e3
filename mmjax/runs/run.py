"""Trains a recipe in a workdir: stage after stage, joined by transitions; then scores and a report."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Collection

from jax.sharding import Mesh
from rich.console import Console

from mmjax import evaluation
from mmjax.base.signals import StopSignal
from mmjax.config.checks import refuse_missing
from mmjax.data.packing.layout import preview, save_preview
from mmjax.data.packing.rows import Rows, make_rows
from mmjax.data.text.tokenizer import Tokenizer
from mmjax.distributed.mesh import make_mesh
from mmjax.kernels.attention import prefer
from mmjax.recipe.recipe import Recipe, Stage
from mmjax.runs import initial_weights
from mmjax.runs.initial_params import initial_params, stage_key
from mmjax.runs.score import finish, score
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
    console: Console | None = None,
) -> None:
    """Trains every stage that is not finished, scores the last one and writes the report.

    Args:
        workdir: the folder of the run; the same recipe in the same folder goes on where it stopped.
        stop_after_steps: stop, saved, after so many steps of this call.

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
            summary = Summary.open(workdir.summary, recipe)
        run = _Run(recipe, workdir, tokenizer, summary, stop, console)
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
                run.summary.add_scores(
                    score(recipe, stage, params, tokenizer, mesh, stop, folder=workdir.path)
                )
            finish(workdir, run.summary, run.say)


@dataclasses.dataclass
class _Run:
    """A resolved recipe that is trained in its workdir.

    Attributes:
        params: of the newest stage that is finished; None until they are needed.
    """

    recipe: Recipe
    workdir: Workdir
    tokenizer: Tokenizer
    summary: Summary
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
        with self.before(stages[0]):
            for stage in stages:  # before anything is trained
                begun = steps[stage.name] is not None or self.summary.has(stage)
                if stage.init_from and not begun:
                    initial_weights.check(stage)
            if not self.summary.is_scored:
                evaluation.open_images(self.recipe, self.tokenizer)
        for index, stage in enumerate(stages):
            done = steps[stage.name] or 0
            # Checkpoints of a stage that another one has followed may have been removed to save space.
            followed = any(steps[later.name] is not None for later in stages[index + 1 :])
            if self.summary.has(stage) and (done == stage.steps or followed):
                self.params = None
                continue
            if budget == 0:
                self.say(
                    f"Stopped before stage {stage.name}, as asked; the same command goes on from here."
                )
                return False
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
