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
from mmjax.evaluation.tasks import find_task
from mmjax.evaluation.tasks.base import EvaluatedModel, ImageQuestions, Question, Split, Task
from mmjax.inference.decode import ModelDef
from mmjax.inference.generate import Generator
from mmjax.models import parameters
from mmjax.models.config import VLMConfig
from mmjax.recipe.recipe import Recipe, Stage
from mmjax.typing import Params


def run(
    recipe: Recipe,
    model_def: ModelDef,
    params: Params,
    tokenizer: Tokenizer,
    *,
    split: Split = "test",
    workdir: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, dict[str, Any]]:
    """Scores the model of the last stage on every task of `recipe.evaluation`, each in one pass.

    Args:
        recipe: with a vocabulary in every decoder.
        model_def, params: of the last stage's model.
        split: "test" for the score of a run; "holdout" for tuning.
        workdir: where to write predictions.jsonl (a line per question: task, id, image, question, type, truth, prediction) and
            attention.npz (see `attention_maps`); None: nowhere.
        should_stop: asked between batches.

    Returns:
        By task: "score", "n", and by type of question "by_type" and "n_by_type"; "baselines" and "baselines_by_type": the same shares for
        "question_only" (the question without the image) and, where the recipe asks for it, "untrained" (the same model, freshly
        initialised).
        Then the task's own `details`.

    Raises:
        InputError: an unknown task, or missing data.
        Preempted: should_stop() was true.
    """
    stage = list(recipe.stages.values())[-1]
    settings = recipe.evaluation
    tasks = {
        name: find_task(name).images(stage.data, split, tokenizer)[: settings.limit]
        for name in settings.tasks
    }
    evaluated = EvaluatedModel(
        stage, model_def, params, tokenizer, settings.batch_size, should_stop
    )
    generators = functools.cache(
        functools.partial(_generator, evaluated)
    )  # by how long an answer may be

    def answer(name: str, params: Params) -> list[str]:
        return _answer(
            generators(find_task(name).answer_tokens(settings)), params, tasks[name], should_stop
        )

    answers = {name: answer(name, params) for name in tasks}
    if workdir is not None and tasks:
        _write_predictions(workdir / "predictions.jsonl", tasks, answers)
        _write_attention(
            workdir / "attention.npz", model_def, params, stage, next(iter(tasks.values()))[0]
        )
    baselines = {
        name: {
            "question_only": find_task(name).question_only_baseline(
                stage.data, split, _questions(images)
            )
        }
        for name, images in tasks.items()
    }
    if settings.untrained and tasks:
        fresh = _untrained(stage.model, params, recipe.seed)
        for name in tasks:
            baselines[name]["untrained"] = answer(name, fresh)
    return {
        name: _result(find_task(name), evaluated, images, answers[name], baselines[name])
        for name, images in tasks.items()
    }


def _generator(evaluated: EvaluatedModel, max_new_tokens: int) -> Generator:
    stage = evaluated.stage
    return Generator(
        evaluated.model_def,
        stage.model,
        evaluated.tokenizer,
        template=stage.data.template,
        resize=stage.data.resize,
        batch_size=evaluated.batch_size,
        max_new_tokens=max_new_tokens,
    )


def _questions(images: Sequence[ImageQuestions]) -> list[Question]:
    return [question for image in images for question in image.questions]


def _answer(
    generator: Generator,
    params: Params,
    images: Sequence[ImageQuestions],
    should_stop: Callable[[], bool],
) -> list[str]:
    """One answer to each question, in order."""
    answers = generator.answer_all(
        params, [image.example for image in images], should_stop=should_stop
    )
    return list(itertools.chain.from_iterable(answers))


def _untrained(model: VLMConfig, params: Params, seed: int) -> Params:
    """The model freshly initialised, laid out over the devices like `params`."""
    shardings = {path: value.sharding for path, value in params.items()}
    return jax.jit(lambda key: parameters.initialize(model, key), out_shardings=shardings)(
        jax.random.key(seed)
    )


def _result(
    task: Task,
    evaluated: EvaluatedModel,
    images: Sequence[ImageQuestions],
    answers: Sequence[str],
    baselines: dict[str, list[str]],
) -> dict[str, Any]:
    questions = _questions(images)
    scores = task.score(questions, answers)
    beside = {name: task.score(questions, of_baseline) for name, of_baseline in baselines.items()}
    result = {
        "score": scores.score,
        "by_type": scores.by_type,
        "n": scores.n,
        "n_by_type": scores.n_by_type,
        "baselines": {name: of_baseline.score for name, of_baseline in beside.items()},
        "baselines_by_type": {name: of_baseline.by_type for name, of_baseline in beside.items()},
    }
    return result | task.details(evaluated, images)


def _write_predictions(
    path: Path, tasks: dict[str, Sequence[ImageQuestions]], answers: dict[str, list[str]]
) -> None:
    lines = []
    for task, images in tasks.items():
        remaining = iter(answers[task])
        for image in images:
            for question in image.questions:
                record = {
                    "task": task,
                    "id": image.example.id,
                    "image": image.path,
                    "question": question.text,
                    "type": question.kind,
                }
                lines.append(
                    json.dumps(
                        record | {"truth": question.truth, "prediction": next(remaining)},
                        ensure_ascii=False,
                    )
                    + "\n"
                )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(lines), encoding="utf-8", errors="replace")
    temporary.replace(path)


def _write_attention(
    path: Path, model_def: ModelDef, params: Params, stage: Stage, image: ImageQuestions
) -> None:
    pixels = load_image(image.image.source, stage.model.vision.image_size, resize=stage.data.resize)
    maps = attention_maps.compute(model_def, params, pixels)
    attention_maps.write(path, image.example.id, pixels, maps)
