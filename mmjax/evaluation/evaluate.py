"""Scores a model on the tasks of its recipe."""

import functools
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from mmjax.data.images import load_image
from mmjax.data.tokenizer import Tokenizer
from mmjax.evaluation import attention_maps
from mmjax.evaluation.task import Picture, Question, Split, Subject, Task
from mmjax.evaluation.tasks import find_task
from mmjax.generate import Generator
from mmjax.greedy import Structure
from mmjax.models import parameters
from mmjax.models.config import VLMConfig
from mmjax.recipe import Recipe, Stage
from mmjax.typing import Params


def run(
    recipe: Recipe,
    structure: Structure,
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
        structure, params: of the last stage's model.
        split: "test" for the score of a run; "holdout" for tuning.
        workdir: where to write predictions.jsonl (a line per question: task, id, image, question, type, truth, prediction) and
            attention.npz (see `attention_maps`); None: nowhere.
        should_stop: asked between batches.

    Returns:
        By task: "score", "n", and by type of question "by_type" and "n_by_type"; "baselines" and "baselines_by_type": the same shares for
        "blind" (the question without the picture) and, where the recipe asks for it, "untrained" (the same model, freshly initialised).
        Then the task's own `details`.

    Raises:
        InputError: an unknown task, or missing data.
        Preempted: should_stop() was true.
    """
    stage = list(recipe.stages.values())[-1]
    settings = recipe.evaluation
    tasks = {name: find_task(name).pictures(stage.data, split, tokenizer)[: settings.limit] for name in settings.tasks}
    subject = Subject(stage, structure, params, tokenizer, settings.batch_size, should_stop)
    generators = functools.cache(functools.partial(_generator, subject))  # by how long an answer may be

    def answer(name: str, params: Params) -> list[str]:
        return _answer(generators(find_task(name).answer_tokens(settings)), params, tasks[name], should_stop)

    answers = {name: answer(name, params) for name in tasks}
    if workdir is not None and tasks:
        _write_predictions(workdir / "predictions.jsonl", tasks, answers)
        _write_attention(workdir / "attention.npz", structure, params, stage, next(iter(tasks.values()))[0])
    baselines = {name: {"blind": find_task(name).blind(stage.data, split, _questions(pictures))} for name, pictures in tasks.items()}
    if settings.untrained and tasks:
        fresh = _untrained(stage.model, params, recipe.seed)
        for name in tasks:
            baselines[name]["untrained"] = answer(name, fresh)
    return {name: _result(find_task(name), subject, pictures, answers[name], baselines[name]) for name, pictures in tasks.items()}


def _generator(subject: Subject, max_new_tokens: int) -> Generator:
    stage = subject.stage
    return Generator(
        subject.structure,
        stage.model,
        subject.tokenizer,
        template=stage.data.template,
        resize=stage.data.resize,
        batch_size=subject.batch_size,
        max_new_tokens=max_new_tokens,
    )


def _questions(pictures: Sequence[Picture]) -> list[Question]:
    return [question for picture in pictures for question in picture.questions]


def _answer(generator: Generator, params: Params, pictures: Sequence[Picture], should_stop: Callable[[], bool]) -> list[str]:
    """One answer to each question, in order."""
    answers = generator.answer_all(params, [picture.example for picture in pictures], should_stop=should_stop)
    return list(itertools.chain.from_iterable(answers))


def _untrained(model: VLMConfig, params: Params, seed: int) -> Params:
    """The model freshly initialised, laid out over the devices like `params`."""
    shardings = {path: value.sharding for path, value in params.items()}
    return jax.jit(lambda key: parameters.initialize(model, key), out_shardings=shardings)(jax.random.key(seed))


def _result(
    task: Task, subject: Subject, pictures: Sequence[Picture], answers: Sequence[str], baselines: dict[str, list[str]]
) -> dict[str, Any]:
    questions = _questions(pictures)
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
    return result | task.details(subject, pictures)


def _write_predictions(path: Path, tasks: dict[str, Sequence[Picture]], answers: dict[str, list[str]]) -> None:
    lines = []
    for task, pictures in tasks.items():
        remaining = iter(answers[task])
        for picture in pictures:
            for question in picture.questions:
                record = {"task": task, "id": picture.example.id, "image": picture.path, "question": question.text, "type": question.kind}
                lines.append(json.dumps(record | {"truth": question.truth, "prediction": next(remaining)}, ensure_ascii=False) + "\n")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(lines), encoding="utf-8", errors="replace")
    temporary.replace(path)


def _write_attention(path: Path, structure: Structure, params: Params, stage: Stage, picture: Picture) -> None:
    pixels = load_image(picture.image.source, stage.model.vision.image_size, resize=stage.data.resize)
    maps = attention_maps.compute(structure, params, pixels)
    attention_maps.write(path, picture.example.id, pixels, maps)
