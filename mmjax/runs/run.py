"""Runs a recipe: stage after stage, joined by transitions; then scores and a report. Also scores and asks what a run has left on disk."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import warnings
from collections.abc import Callable, Collection, Mapping

import jax
from jax.sharding import Mesh, NamedSharding
from rich.console import Console

from mmjax import evaluation, report, transitions
from mmjax.base.signals import StopSignal
from mmjax.data.examples import Example, Image, SampleError, Text
from mmjax.data.packing.layout import preview, save_preview
from mmjax.data.packing.rows import Rows, make_rows
from mmjax.data.text.templates import Turn, find_template
from mmjax.data.text.tokenizer import Tokenizer
from mmjax.distributed import mesh as mesh_axes
from mmjax.distributed import mesh as sharding
from mmjax.errors import InputError, Preempted
from mmjax.inference.generate import Generator
from mmjax.kernels.attention import prefer
from mmjax.models import parameters
from mmjax.recipe.recipe import DataConfig, LlavaSource, Recipe, Stage
from mmjax.recipe.schema import choose, to_plain
from mmjax.runs import initial_weights
from mmjax.runs.saved import (
    Summary,
    describe,
    find_checkpoint,
    newest_step,
    prepare_tokenizer,
    read_params,
)
from mmjax.runs.workdir import Workdir, write_json
from mmjax.training.logging import Tracker, make_trackers
from mmjax.training.loop import train_stage
from mmjax.training.result import StageFiles, StageResult
from mmjax.training.state import InitialParams
from mmjax.typing import Array, Params

ANSWER_TOKENS = 64  # after which `generate` cuts an answer


def train(
    recipe: Recipe,
    workdir: Workdir,
    *,
    stop_after_steps: int | None = None,
    console: Console | None = None,
) -> None:
    """Trains every stage that is not finished, scores the last one and writes the report.

    Args:
        stop_after_steps: stop, saved, after so many steps of this call.

    Raises:
        InputError, NonFiniteError, Preempted: as their names say; what was saved stays good.
    """
    console = console or Console()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_kernels(recipe))
        stack.enter_context(workdir.claim(recipe))
        stop = stack.enter_context(StopSignal())
        run = _Run(recipe, workdir, stop, console)
        run.say(
            f"{recipe.name}{':' + recipe.variant if recipe.variant else ''}: {' -> '.join(recipe.stages)}, in {workdir.path}"
        )
        for name, note in recipe.notes.items():
            run.say(f"  {name}: {note}")
        tracker = make_trackers(recipe, workdir.path)
        stack.callback(tracker.close)
        if run.train_stages(tracker, stop_after_steps):
            run.score()
            run.finish()


def evaluate(
    recipe: Recipe,
    workdir: Workdir,
    *,
    checkpoint: str | None = None,
    begin: str | None = None,
    console: Console | None = None,
) -> None:
    """Scores the newest state of a run, or a checkpoint folder, and prints the scores. Those of a finished run go into its summary; all
    go into evaluations.jsonl.

    Args:
        begin: a stage, of which the parameters that it begins with are scored: those of the stage before, after its transitions.

    Raises:
        InputError: there is no such checkpoint, or it belongs to no stage of the recipe.
        Preempted: a stop was requested.
    """
    console = console or Console()
    if begin is not None:
        choose(begin, recipe.stages, "stage")
    stage, folder = (
        find_checkpoint(recipe, workdir, checkpoint)
        if begin is None
        else (recipe.stages[begin], None)
    )
    with _kernels(recipe), workdir.claim(recipe), StopSignal() as stop:
        run = _Run(recipe, workdir, stop, console)
        mesh = sharding.make_mesh(recipe.mesh)
        if folder is None:
            run.score_beginning(stage.name, mesh)
            return
        params = read_params(
            folder, run.recipe_with_vocab, _places(run.recipe_with_vocab.stages[stage.name], mesh)
        )
        run.say(f"scoring {folder}")
        last = workdir.checkpoints.absolute() / list(recipe.stages)[-1] / str(stage.steps)
        if folder.absolute() == last and run.summary.has(stage):
            run.params = params
            run.score(again=True)
            run.note(stage.name, stage.steps, run.summary.eval)
            run.finish()
            return
        run.score_apart(stage.name, params, mesh, step=int(folder.name))


def generate(
    recipe: Recipe,
    workdir: Workdir,
    *,
    image: str | None,
    prompt: str | None,
    checkpoint: str | None = None,
) -> str:
    """The answer of a run's newest state, or of a checkpoint folder, to a prompt about an image (or about none).

    Raises:
        InputError: there is no prompt, no such image or no such checkpoint.
        Preempted: a stop was requested.
    """
    if not prompt:
        raise InputError("--prompt is missing: what to ask about the image.")
    if image is not None and not pathlib.Path(image).is_file():
        raise InputError(f"There is no image {image!r}.")
    stage, folder = find_checkpoint(recipe, workdir, checkpoint)
    tokenizer, recipe_with_vocab = prepare_tokenizer(recipe, workdir.path, build=False)
    stage = recipe_with_vocab.stages[stage.name]
    model_def, _ = parameters.abstract(stage.model)
    data = stage.data
    generator = Generator(
        model_def,
        stage.model,
        tokenizer,
        template=data.template,
        resize=data.resize,
        max_new_tokens=ANSWER_TOKENS,
    )
    with _kernels(recipe), StopSignal() as stop:
        params = read_params(folder, recipe_with_vocab)
        try:
            answers = generator.answer_all(
                params,
                [request(data, image, prompt, tokenizer)],
                should_stop=lambda: stop.requested,
            )
        except SampleError as error:
            raise InputError(f"The image or the prompt cannot be used: {error}.") from None
        if stop.requested:
            raise Preempted("Stopped while answering; there is nothing to save.")
    return answers[0][0]


def request(
    data: DataConfig, image: str | None, prompt: str, tokenizer: Tokenizer | None = None
) -> Example:
    """A prompt as the stage's data would put it: in a conversation the image stands in the user's turn, elsewhere before everything."""
    template = find_template(data.template, tokenizer)
    images = () if image is None else (Image(pathlib.Path(image)),)
    if any(isinstance(source, LlavaSource) for source in data.sources.values()):
        said = (*images, Text(f"\n{prompt}")) if images else (Text(prompt),)
        return Example((), (template.conversation([Turn("user", said)]),), "prompt")
    return Example(images, (template.prompt(prompt),), "prompt")


class _Run:
    """A run in its workdir.

    Attributes:
        recipe_with_vocab: the recipe with a vocabulary for the run's tokenizer.
        params: of the newest stage that is finished; None until they are needed.
    """

    def __init__(self, recipe: Recipe, workdir: Workdir, stop: StopSignal, console: Console):
        self.recipe, self.workdir, self.stop, self.console = recipe, workdir, stop, console
        self.summary = Summary.open(workdir.summary, recipe)
        self.tokenizer, self.recipe_with_vocab = prepare_tokenizer(recipe, workdir.path)
        self.params: Params | None = None

    def say(self, text: str) -> None:
        """A line for the user."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def train_stages(self, tracker: Tracker, budget: int | None) -> bool:
        """Trains what is not finished, at most `budget` steps of it. Returns whether everything is."""
        before: Stage | None = None
        for stage in (
            self.recipe_with_vocab.stages.values()
        ):  # before anything is trained: are the files there, and do they fit?
            if newest_step(self.workdir.checkpoints / stage.name) is None and not self.summary.has(
                stage
            ):
                initial_weights.check(stage)
        for index, stage in enumerate(self.recipe_with_vocab.stages.values()):
            done = newest_step(self.workdir.checkpoints / stage.name) or 0
            if self.summary.has(stage) and (done == stage.steps or self._begun_after(index)):
                before, self.params = stage, None
                continue
            if budget == 0:
                self.say(
                    f"Stopped before stage {stage.name}, as asked; the same command goes on from here."
                )
                return False
            key = jax.random.fold_in(jax.random.key(self.recipe.seed), index)
            result = self._train_stage(stage, before, key, tracker, budget)
            if not result.finished:
                self.say(
                    f"Stopped at step {result.steps} of stage {stage.name}, as asked; the same command goes on from here."
                )
                return False
            self.summary.add_stage(stage, result)
            budget = None if budget is None else max(0, budget - (result.steps - done))
            before, self.params = stage, result.params
            del result  # what the next stage leaves behind, such as a surrogate's decoder, is held by nothing else
        return True

    def score_beginning(self, name: str, mesh: Mesh) -> None:
        """Scores what a stage begins with. Raises InputError if the stage before it has not finished."""
        names = list(self.recipe_with_vocab.stages)
        index, stage = names.index(name), self.recipe_with_vocab.stages[name]
        before = self.recipe_with_vocab.stages[names[index - 1]] if index else None
        if (
            before is not None
            and newest_step(self.workdir.checkpoints / before.name) != before.steps
        ):
            why = (
                "its last checkpoint is not there any more"
                if self.summary.has(before)
                else "that one has not finished"
            )
            raise InputError(
                f"Stage {name!r} begins with what stage {before.name!r} ends with, and {why}."
            )
        initial_weights.check(stage)
        untrained = dataclasses.replace(
            stage, trainable=()
        )  # so that matrices are read in the dtype that they compute in
        start = self._start(
            untrained, before, jax.random.fold_in(jax.random.key(self.recipe.seed), index)
        )(mesh)
        with warnings.catch_warnings(
            action="ignore", category=UserWarning
        ):  # a buffer that was resized cannot be donated
            params = jax.jit(start.make, out_shardings=_places(stage, mesh), donate_argnums=0)(
                start.given
            )
        self.score_apart(name, params, mesh, step=0)

    def score_apart(self, name: str, params: Params, mesh: Mesh, *, step: int) -> None:
        """Scores a stage's model with some parameters, and notes the scores beside those of the run."""
        names = list(self.recipe_with_vocab.stages)
        until = {
            other: self.recipe_with_vocab.stages[other] for other in names[: names.index(name) + 1]
        }
        scores = _scores(
            dataclasses.replace(self.recipe_with_vocab, stages=until),
            params,
            self.tokenizer,
            self.stop,
            None,
            mesh,
        )
        self.note(name, step, scores)
        if self.workdir.report.exists():
            report.write(self.workdir.path)
        for line in describe(scores):
            self.say(line)

    def note(self, name: str, step: int, scores: dict[str, dict]) -> None:
        """Adds scores to evaluations.jsonl."""
        record = {
            "stage": name,
            "step": step,
            "evaluation": to_plain(self.recipe.evaluation),
            "eval": scores,
        }
        with self.workdir.evaluations.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _begun_after(self, index: int) -> bool:
        """Whether a later stage has checkpoints: those of this one may have been removed to save space."""
        later = list(self.recipe_with_vocab.stages)[index + 1 :]
        return any(newest_step(self.workdir.checkpoints / name) is not None for name in later)

    def _train_stage(
        self, stage: Stage, before: Stage | None, key: Array, tracker: Tracker, budget: int | None
    ) -> StageResult:
        self._answer_stop(stage)
        rows = make_rows(stage.data, stage.model, self.tokenizer, self.recipe.seed)
        held_out = (
            make_rows(stage.data, stage.model, self.tokenizer, self.recipe.seed, "holdout")
            if stage.data.holdout
            else None
        )
        self._show(stage, rows)
        self._answer_stop(stage)
        return train_stage(
            stage,
            self.recipe_with_vocab,
            StageFiles(self.workdir.checkpoints / stage.name, self.workdir.path / "nonfinite.json"),
            start=self._start(stage, before, key),
            key=key,
            rows=rows,
            held_out=held_out,
            tracker=tracker,
            stop=self.stop,
            console=self.console,
            stop_after=budget,
        )

    def _start(
        self, stage: Stage, before: Stage | None, key: Array
    ) -> Callable[[Mesh], InitialParams]:
        """What gives a stage its beginning; where each parameter came from is written down and shown."""

        def start(mesh: Mesh) -> InitialParams:
            if before is None:
                shapes = parameters.abstract(stage.model)[1]
                entries = tuple(
                    transitions.Entry.of(value, path, None, "fresh")
                    for path, value in sorted(shapes.items())
                )
                manifest = transitions.Manifest(entries, stage.name)
                found = InitialParams({}, lambda _: parameters.initialize(stage.model, key))
            else:
                old, names = before.model, stage.transitions
                loaded = stage.loaded_parts
                self._warn_of_another(stage)
                manifest = transitions.plan(
                    names, old, stage.model, stage=stage.name, loaded=loaded
                )
                needed = {source for entry in manifest.entries for source in entry.sources}
                given, self.params = (
                    self._finished_params(before, mesh, needed),
                    None,
                )  # the stage will consume these arrays
                make = functools.partial(
                    transitions.apply,
                    names,
                    old=old,
                    new=stage.model,
                    key=key,
                    stage=stage.name,
                    loaded=loaded,
                )
                found = InitialParams(given, lambda given: make(given)[0])
            if stage.init_from:
                found, manifest = initial_weights.begin(stage, found, manifest, mesh, key, self.say)
            if before is None:
                self._warn_of_frozen(
                    stage,
                    {entry.target: entry for entry in manifest.entries if entry.how == "fresh"},
                )
            write_json(self.workdir.manifest(stage.name), manifest.to_json())
            self.say(f"{stage.name}: where its parameters come from\n{manifest.summary()}")
            return found

        return start

    def _warn_of_frozen(self, stage: Stage, fresh: Mapping[str, transitions.Entry]) -> None:
        frozen = {
            path: entry
            for path, entry in fresh.items()
            if not parameters.matches(path, stage.trainable)
        }
        if frozen:
            parts = ", ".join(sorted({path.split("/")[0] for path in frozen}))
            self.say(
                f"WARNING: {parameters.count(frozen):,} parameters of {stage.name} ({parts}) are random numbers and stay so: they are not "
                "trained, and no weights were loaded into them. What comes of it measures cost, not quality."
            )

    def _warn_of_another(self, stage: Stage) -> None:
        """Whoever grafts onto another decoder than the surrogate was cut from should mean it."""
        before = [
            other.init_from.get("decoder")
            for other in self.recipe_with_vocab.stages.values()
            if other.model.decoder.replaced_layers
        ]
        cut_from, target = next(filter(None, before), None), stage.init_from.get("decoder")
        if "graft" in stage.transitions and None not in (cut_from, target) and cut_from != target:
            self.say(
                f"WARNING: the surrogate of {stage.name} was cut from {cut_from}, and {target} is put in its place: unless they share "
                "their embeddings, it does not understand the encoder."
            )

    def _finished_params(
        self, stage: Stage, mesh: Mesh, needed: Collection[str] | None = None
    ) -> Params:
        """Those of a finished stage, or only what is needed of them, laid out on the mesh if they are not in memory yet."""
        if self.params is None:
            folder = self.workdir.checkpoints / stage.name / str(stage.steps)
            places = {
                path: place
                for path, place in _places(stage, mesh).items()
                if needed is None or path in needed
            }
            self.params = read_params(folder, self.recipe_with_vocab, places)
        return {
            path: value for path, value in self.params.items() if needed is None or path in needed
        }

    def _show(self, stage: Stage, rows: Rows) -> None:
        """The first row as the model will read it: on paper, and on the screen the first time."""
        row, _ = rows.load(0)
        path = self.workdir.preview(stage.name, ".txt")
        text = preview(row, self.tokenizer)
        self.say(f"{stage.name}: {rows.statistics()}")
        if not path.exists():
            self.say(f"{stage.name}: its first row (tokens with loss in brackets)\n{text}")
        path.write_text(text + "\n", encoding="utf-8")
        save_preview(row, self.tokenizer, self.workdir.preview(stage.name, ".png"))

    def score(self, *, again: bool = False) -> None:
        """Scores the last stage, unless that was done with the same settings."""
        if self.summary.is_scored and not again:
            return
        stage, mesh = (
            list(self.recipe_with_vocab.stages.values())[-1],
            sharding.make_mesh(self.recipe_with_vocab.mesh),
        )
        scores = _scores(
            self.recipe_with_vocab,
            self._finished_params(stage, mesh),
            self.tokenizer,
            self.stop,
            self.workdir.path,
            mesh,
        )
        self.summary.add_scores(scores)

    def finish(self) -> None:
        """The report, and the scores for the user."""
        path = report.write(self.workdir.path)
        for line in describe(self.summary.eval):
            self.say(line)
        self.say(f"report: {path}")

    def _answer_stop(self, stage: Stage) -> None:
        if self.stop.requested:
            raise Preempted(
                f"Stopped before stage {stage.name!r}; what was done is saved. The same command goes on from here."
            )


def _kernels(recipe: Recipe) -> contextlib.AbstractContextManager[None]:
    return prefer(recipe.kernels.attention, deterministic=recipe.kernels.deterministic)


def _places(stage: Stage, mesh: Mesh) -> dict[str, NamedSharding]:
    return mesh_axes.parameter_shardings(
        parameters.abstract(stage.model)[1], parameters.logical_axes(stage.model), mesh
    )[0]


def _scores(
    recipe: Recipe,
    params: Params,
    tokenizer: Tokenizer,
    stop: StopSignal,
    folder: pathlib.Path | None,
    mesh: Mesh,
) -> dict[str, dict]:
    """The scores of the last stage's model, computed on the mesh on which its parameters lie."""
    stage = list(recipe.stages.values())[-1]
    model_def, _ = parameters.abstract(stage.model)
    with jax.set_mesh(mesh):
        return evaluation.run(
            recipe, model_def, params, tokenizer, workdir=folder, should_stop=lambda: stop.requested
        )
