"""Scores a model on the tasks of its recipe."""

import functools
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from mmjax.data.images.decode import load_image
from mmjax.data.text.tokenizer import Tokenizer
from mmjax.evaluation import attention_maps
from mmjax.evaluation.progress import ScoringProgress
from mmjax.evaluation.tasks import find_task
from mmjax.evaluation.tasks.base import EvaluatedModel, ImageQuestions, Question, Split, Task
from mmjax.inference.decode import VLMDef
from mmjax.inference.generate import Generator
from mmjax.models import parameters
from mmjax.recipe.recipe import Recipe
from mmjax.typing import Params


def run(
    recipe: Recipe,
    model_def: VLMDef,
    params: Params,
    tokenizer: Tokenizer,
    *,
    split: Split = "test",
    workdir: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    progress: ScoringProgress | None = None,
) -> dict[str, dict[str, Any]]:
    """Scores the model of the last stage on every task of `recipe.evaluation`, each in one pass.

    Args:
        recipe: with a vocabulary in every decoder.
        model_def, params: of the last stage's model.
        split: "test" for the score of a run; "holdout" for tuning.
        workdir: where to write predictions.jsonl (a line per question: task, id, image, question, type, reference, prediction) and
            attention.npz (see `attention_maps`); None: nowhere.
        should_stop: asked between batches.
        progress: shows how far it is; None: nothing is shown.

    Returns:
        By task: "score", "n", and by type of question "by_type" and "n_by_type"; "baselines" and "baselines_by_type": the same shares for
        "question_only" (the question without the image) and, where the recipe asks for it, "untrained" (the same model, freshly
        initialised).
        Then the task's own `details`; and "partial", {"images", "of"}, if `limit` left some of its images out.

    Raises:
        InputError: an unknown task, or missing data.
        Preempted: should_stop() was true.
    """
    stage = list(recipe.stages.values())[-1]
    settings = recipe.evaluation
    tasks = {name: find_task(name) for name in settings.tasks}
    everything = open_images(recipe, tokenizer, split)
    images = {name: everything[name][: settings.limit] for name in tasks}
    partial = {
        name: {"images": len(images[name]), "of": len(everything[name])}
        for name in tasks
        if len(images[name]) < len(everything[name])
    }
    questions = {name: [one for image in images[name] for one in image.questions] for name in tasks}
    progress = progress or ScoringProgress()
    evaluated = EvaluatedModel(
        stage, model_def, params, tokenizer, settings.batch_size, should_stop, progress
    )

    @functools.cache
    def generator(max_new_tokens: int) -> Generator:
        return Generator(
            model_def,
            stage.model,
            tokenizer,
            template=stage.data.template,
            resize=stage.data.resize,
            batch_size=settings.batch_size,
            max_new_tokens=max_new_tokens,
        )

    def answer(name: str, params: Params, whose: str = "") -> list[str]:
        """One answer to each question of a task, in order."""
        with progress.part(f"{name}{whose}", len(questions[name]), "questions") as done:
            answers = generator(tasks[name].answer_tokens(settings)).answer_all(
                params,
                [image.example for image in images[name]],
                should_stop=should_stop,
                on_answers=done,
            )
        return list(itertools.chain.from_iterable(answers))

    answers = {name: answer(name, params) for name in tasks}
    if workdir is not None and tasks:
        _write(workdir, evaluated, images, answers)
    baselines = {
        name: {"question_only": task.question_only_baseline(stage.data, split, questions[name])}
        for name, task in tasks.items()
    }
    if settings.untrained and tasks:
        places = {path: value.sharding for path, value in params.items()}
        initialize = functools.partial(parameters.initialize, stage.model)
        fresh = jax.jit(initialize, out_shardings=places)(jax.random.key(recipe.seed))
        for name in tasks:
            baselines[name]["untrained"] = answer(name, fresh, ", untrained")
    return {
        name: _scored(task, questions[name], answers[name], baselines[name])
        | ({"partial": partial[name]} if name in partial else {})
        | task.details(evaluated, images[name])
        for name, task in tasks.items()
    }


def open_images(
    recipe: Recipe, tokenizer: Tokenizer, split: Split = "test"
) -> dict[str, Sequence[ImageQuestions]]:
    """All that each task of `recipe.evaluation` can ask about, by its name. Raises InputError if there is nothing to ask, or data are
    missing."""
    data = list(recipe.stages.values())[-1].data
    return {
        name: find_task(name).images(data, split, tokenizer) for name in recipe.evaluation.tasks
    }


def _scored(
    task: Task,
    questions: Sequence[Question],
    answers: Sequence[str],
    baselines: dict[str, list[str]],
) -> dict[str, Any]:
    scores = task.score(questions, answers)
    beside = {name: task.score(questions, of_baseline) for name, of_baseline in baselines.items()}
    return {
        "score": scores.score,
        "by_type": scores.by_type,
        "n": scores.n,
        "n_by_type": scores.n_by_type,
        "baselines": {name: of_baseline.score for name, of_baseline in beside.items()},
        "baselines_by_type": {name: of_baseline.by_type for name, of_baseline in beside.items()},
    }


def _write(
    workdir: Path,
    evaluated: EvaluatedModel,
    images: dict[str, Sequence[ImageQuestions]],
    answers: dict[str, list[str]],
) -> None:
    """Writes predictions.jsonl, and attention.npz for the first image."""
    lines = []
    for task, of_task in images.items():
        remaining = iter(answers[task])
        for image in of_task:
            for question in image.questions:
                record = {
                    "task": task,
                    "id": image.example.id,
                    "image": image.path,
                    "question": question.text,
                    "type": question.kind,
                    "reference": question.reference,
                    "prediction": next(remaining),
                }
                lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    path = workdir / "predictions.jsonl"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(lines), encoding="utf-8", errors="replace")
    temporary.replace(path)
    first = next(iter(images.values()))[0]
    size, resize = evaluated.stage.model.vision.image_size, evaluated.stage.data.resize
    pixels = load_image(first.image.source, size, resize=resize)
    maps = attention_maps.compute(evaluated.model_def, evaluated.params, pixels)
    attention_maps.write(workdir / "attention.npz", first.example.id, pixels, maps)
