"""Scores a run: its last stage for summary.json and the report, other checkpoints and what a stage begins with for evaluations.jsonl."""

import dataclasses
import functools
import json
import pathlib
import warnings
from collections.abc import Callable, Collection
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from mmjax import evaluation, report
from mmjax.base.signals import StopSignal
from mmjax.data.text.tokenizer import Tokenizer
from mmjax.distributed.mesh import make_mesh
from mmjax.errors import InputError
from mmjax.kernels.attention import prefer
from mmjax.models import parameters
from mmjax.recipe.recipe import Recipe, Stage
from mmjax.recipe.schema import choose
from mmjax.recipe.serialization import to_plain
from mmjax.runs import initial_weights
from mmjax.runs.initial_params import initial_params, stage_before
from mmjax.runs.workdir import Summary, Workdir, read_params
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
    """Scores the newest state of a run, or a checkpoint folder, and prints the scores. Those of a finished run go into its summary; all
    go into evaluations.jsonl.

    Args:
        begin: a stage, of which the parameters that it begins with are scored: those of the stage before, after its transitions.

    Raises:
        InputError: there is no such checkpoint, or it belongs to no stage of the recipe.
        Preempted: a stop was requested.
    """
    say = functools.partial(print_line, console or Console())
    if begin is None:
        stage, folder = workdir.find_checkpoint(recipe, checkpoint)
    else:
        stage, folder = choose(begin, recipe.stages, "stage"), None
    with (
        prefer(recipe.kernels.attention, deterministic=recipe.kernels.deterministic),
        StopSignal() as stop,
        stop.at_once("Stopped while scoring; training is saved, and nothing was added to it."),
        workdir.claim(recipe) as (recipe, tokenizer),
    ):
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
        of_the_run = folder is not None and folder.absolute() == last and summary.has(stage)
        scores = score(
            recipe,
            stage,
            params,
            tokenizer,
            mesh,
            stop,
            folder=workdir.path if of_the_run else None,
        )
        if of_the_run:
            summary.add_scores(scores)
        record = {
            "stage": stage.name,
            "step": step,
            "evaluation": to_plain(recipe.evaluation),
            "eval": scores,
        }
        with workdir.evaluations.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if of_the_run:
            finish(workdir, summary, say)
            return
        if workdir.report.exists():
            report.write(workdir.path)
        for line in describe(scores):
            say(line)


def score(
    recipe: Recipe,
    stage: Stage,
    params: Params,
    tokenizer: Tokenizer,
    mesh: Mesh,
    stop: StopSignal,
    *,
    folder: pathlib.Path | None = None,
) -> Scores:
    """The scores of a stage's model with some parameters, computed on the mesh on which these lie.

    Args:
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
        )


def finish(workdir: Workdir, summary: Summary, say: Callable[[str], None]) -> None:
    """Writes the report, and says the scores."""
    path = report.write(workdir.path)
    for line in describe(summary.eval):
        say(line)
    say(f"report: {path}")


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
