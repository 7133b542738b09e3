"""Scores a run: its last stage for summary.json and the report, other checkpoints and what a stage begins with for evaluations.jsonl."""

import dataclasses
import functools
import json
import pathlib
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from mmjax import evaluation, report
from mmjax.base.format import first_of
from mmjax.base.signals import StopSignal
from mmjax.data.text import vocabulary
from mmjax.data.text.tokenizer import Tokenizer
from mmjax.distributed.mesh import make_mesh
from mmjax.errors import InputError
from mmjax.evaluation.progress import ScoringProgress
from mmjax.kernels.attention import prefer
from mmjax.models import parameters
from mmjax.recipe.recipe import EvaluationConfig, Recipe, Stage
from mmjax.recipe.schema import KeyPath, choose, convert
from mmjax.recipe.serialization import to_json, to_plain
from mmjax.runs import initial_weights
from mmjax.runs.initial_params import initial_params, stage_before
from mmjax.runs.inputs import Inputs
from mmjax.runs.workdir import Summary, Workdir, read_params, write_json
from mmjax.training.logging import print_line
from mmjax.training.state import param_shardings
from mmjax.typing import Params

Scores = dict[str, dict[str, Any]]
"""By task, what `evaluation.run` returns."""


def evaluate(
    recipe: Recipe,
    workdir: Workdir,
    *,
    checkpoint: str | None = None,
    begin: str | None = None,
    console: Console | None = None,
) -> None:
    """Scores the newest state of a run, or a checkpoint folder, prints the scores and notes them in evaluations.jsonl.

    The run's own score, in its summary, is that of its end, with the settings of its config.json, on all images of a task. Such a score
    takes the place of the one that is there; no other does.

    Args:
        begin: a stage, of which the parameters that it begins with are scored: those of the stage before, after its transitions.

    Raises:
        InputError: there is no such checkpoint, or it belongs to no stage of the recipe.
        Preempted: a stop was requested.
    """
    console = console or Console()
    say = functools.partial(print_line, console)
    if begin is None:
        stage, folder = workdir.find_checkpoint(recipe, checkpoint)
    else:
        stage, folder = choose(begin, recipe.stages, "stage"), None
    workdir.check(recipe)
    # The run keeps the settings that it has, which may differ from these in what trains nothing.
    own = workdir.recipe() if workdir.config.exists() else recipe
    with (
        prefer(recipe.kernels.attention, deterministic=recipe.kernels.deterministic),
        StopSignal() as stop,
        stop.at_once("Stopped while scoring; training is saved, and nothing was added to it."),
        workdir.claim(own) as (own, tokenizer),
    ):
        recipe = vocabulary.fit(recipe, tokenizer)
        mesh, stage = make_mesh(recipe.mesh), recipe.stages[stage.name]
        summary = Summary.open(workdir.summary, recipe)
        if folder is None:
            params, step = _beginning(recipe, stage, mesh, workdir, summary, say), 0
        else:
            params, step = (
                read_params(folder, recipe, param_shardings(stage.model, mesh)),
                int(folder.name),
            )
            say(f"scoring {folder}")
        last = workdir.checkpoints.absolute() / list(recipe.stages)[-1] / str(stage.steps)
        inputs = Inputs(recipe, workdir, tokenizer)
        changed = inputs.changed(inputs.read([stage], weights=folder is None))
        for line in changed:
            say(f"WARNING: what the run has read has changed: {line}")
        of_the_run = (
            folder is not None
            and folder.absolute() == last
            and summary.has(stage)
            and asks(recipe.evaluation) == asks(own.evaluation)
            and not changed
        )
        # Answers about some of the images must not replace those about all of them.
        replaces = of_the_run and (recipe.evaluation.limit is None or not summary.eval)
        scores = score(
            recipe,
            stage,
            params,
            tokenizer,
            mesh,
            stop,
            console,
            folder=workdir.path if replaces else None,
        )
        note_scores(workdir, recipe, stage, step, scores, changed)
        if of_the_run and (found := whole(scores)):
            summary.add_scores(found, own.evaluation if len(found) == len(scores) else None)
        for line in describe(scores):
            say(line)
        if workdir.report.exists() or of_the_run:
            say(f"report: {report.write(workdir.path)}")
        if not of_the_run or len(whole(scores)) < len(scores):
            say(f"The score of the run stays as it is; this one is noted in {workdir.evaluations}.")


def as_scored(recipe: Recipe, workdir: Workdir, say: Callable[[str], None]) -> Recipe:
    """The claimed recipe with the settings that the run was scored with, if it was, on all images; its config.json keeps them, too."""
    summary = Summary.open(workdir.summary, recipe)
    if not summary.eval or summary.evaluation is None or summary.is_scored:
        return recipe
    scored = convert(summary.evaluation, EvaluationConfig, KeyPath(("evaluation",)))
    if not summary.eval.keys() >= set(scored.tasks):
        return recipe
    if asks(scored) != asks(recipe.evaluation):
        say(
            "This run was scored with other evaluation settings, and keeps that score; --mode=evaluate scores it with these, beside it."
        )
    recipe = dataclasses.replace(recipe, evaluation=scored)
    write_json(workdir.config, to_json(recipe))
    return recipe


def asks(settings: EvaluationConfig) -> EvaluationConfig:
    """What of the settings decides what a score means: not how much is computed at once, and not the limit, which a score shows itself."""
    return dataclasses.replace(settings, batch_size=1, limit=None)


def whole(scores: Scores) -> Scores:
    """Those of tasks of which all images were asked about."""
    return {task: result for task, result in scores.items() if "partial" not in result}


def note_scores(
    workdir: Workdir,
    recipe: Recipe,
    stage: Stage,
    step: int,
    scores: Scores,
    changed: Sequence[str] = (),
) -> None:
    """Adds a line to evaluations.jsonl. changed: how the data are not those that the run has read."""
    record = {
        "stage": stage.name,
        "step": step,
        "partial": len(whole(scores)) < len(scores),
        **({"changed_data": list(changed)} if changed else {}),
        "evaluation": to_plain(recipe.evaluation),
        "eval": scores,
    }
    with workdir.evaluations.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def score_end(
    recipe: Recipe,
    workdir: Workdir,
    summary: Summary,
    params: Params,
    tokenizer: Tokenizer,
    mesh: Mesh,
    stop: StopSignal,
    console: Console,
) -> None:
    """Scores the end of a trained run, for its summary. What was asked about some of the images only is said, and noted beside it.

    Args:
        params: of the last stage; the other arguments as those of `score`.
    """
    stage = list(recipe.stages.values())[-1]
    scores = score(recipe, stage, params, tokenizer, mesh, stop, console, folder=workdir.path)
    if (found := whole(scores)) != scores:
        note_scores(workdir, recipe, stage, stage.steps, scores)
        beside = f"Scores of some of the images are no scores of the run; they are noted in {workdir.evaluations}."
        for line in (*describe(scores), beside):
            print_line(console, line)
    summary.add_scores(found, recipe.evaluation)


def score(
    recipe: Recipe,
    stage: Stage,
    params: Params,
    tokenizer: Tokenizer,
    mesh: Mesh,
    stop: StopSignal,
    console: Console,
    *,
    folder: pathlib.Path | None = None,
) -> Scores:
    """The scores of a stage's model with some parameters, computed on the mesh on which these lie.

    Args:
        console: where it is shown how far they are.
        folder: where predictions and attention maps are written; None: nowhere.

    Raises:
        Preempted: a stop was requested.
    """
    names = list(recipe.stages)
    until = {name: recipe.stages[name] for name in names[: names.index(stage.name) + 1]}
    model_def, _ = parameters.abstract(stage.model)
    with jax.set_mesh(mesh):
        return evaluation.run(
            dataclasses.replace(recipe, stages=until),
            model_def,
            params,
            tokenizer,
            workdir=folder,
            should_stop=lambda: stop.requested,
            progress=ScoringProgress(console),
        )


def finish(workdir: Workdir, summary: Summary, say: Callable[[str], None]) -> None:
    """Writes the report, and says the scores of the run."""
    path = report.write(workdir.path)
    for line in describe(summary.eval):
        say(line)
    say(f"report: {path}")
    say(
        f"ask it: mmjax --workdir={workdir.path} --mode=generate --image=IMAGE --prompt=QUESTION (or without: a caption)"
    )


def _beginning(
    recipe: Recipe,
    stage: Stage,
    mesh: Mesh,
    workdir: Workdir,
    summary: Summary,
    say: Callable[[str], None],
) -> Params:
    """The parameters that a stage begins with. Raises InputError if the stage before it has not finished."""
    before = stage_before(recipe, stage.name)
    if before is not None and workdir.newest_step(before.name) != before.steps:
        why = (
            "its last checkpoint is not there any more"
            if summary.has(before)
            else "that one has not finished"
        )
        raise InputError(
            f"Stage {stage.name!r} begins with what stage {before.name!r} ends with, and {why}."
        )
    if stage.init_from:
        initial_weights.check(stage)

    def trained(before: Stage, needed: Collection[str]) -> Params:
        folder = workdir.checkpoints / before.name / str(before.steps)
        return read_params(folder, recipe, param_shardings(before.model, mesh, needed))

    # Nothing is trained, so that matrices are read in the dtype that they compute in.
    untrained = dataclasses.replace(stage, trainable=())
    start = initial_params(recipe, untrained, mesh, workdir, trained=trained, say=say)
    make = jax.jit(start.make, out_shardings=param_shardings(stage.model, mesh), donate_argnums=0)
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        # The memory of an array that was resized cannot be used again.
        return make(start.given)


def describe(scores: Scores) -> list[str]:
    """The scores in words, a line per task."""
    lines = []
    for task, result in scores.items():
        metric = result.get("metric")
        by_type = ", ".join(f"{kind} {share:.3f}" for kind, share in result["by_type"].items())
        baselines = ", ".join(f"{name} {share:.3f}" for name, share in result["baselines"].items())
        if metric is None:
            text = f"{result['score']:.4f} of {result['n']:,} questions ({by_type})"
        else:
            text = f"{metric} {result['score']:.4f} on {result['n']:,} images ({by_type})"
        if "partial" in result:
            text += f"; PARTIAL: {first_of(result['partial'])}"
        likelihood = ""
        if "nll" in result:
            shuffled = result["nll_shuffled"]
            beside = "" if shuffled is None else f", {shuffled:.4f} beside other images"
            likelihood = (
                f"; true captions: {result['nll']:.4f} nats per token{beside}, "
                f"{result['nll_per_caption']:.2f} per caption"
            )
        lines.append(f"{task}: {text}; baselines: {baselines or 'none'}{likelihood}")
    return lines
