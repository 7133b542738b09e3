"""Scoring a (tiny, untrained) model on the tasks of its recipe."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from mmjax import evaluation
from mmjax.data.sources.easy_vqa import EasyVqaSource
from mmjax.data.text.tokenizer import WordTokenizer
from mmjax.errors import InputError, Preempted
from mmjax.evaluation.progress import ScoringProgress
from mmjax.inference.generate import Generator
from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.linear import LinearConfig
from mmjax.models.connectors.resampler import ResamplerConfig
from mmjax.recipe.recipe import DataConfig, EvaluationConfig, OptimizerConfig, Recipe, Stage

TOKENIZER = WordTokenizer.build(["is there a red shape?", " yes", " no", " red"])


def make_recipe(
    connector: ResamplerConfig | LinearConfig | None = None, **settings: object
) -> Recipe:
    connector = connector or ResamplerConfig("resampler", (4, 2), (2, 4), (1,), 16, 8, 32)
    decoder = DecoderConfig(TOKENIZER.vocabulary, 16, 1, 2, 1, 8, 32)
    model = VLMConfig(
        ViTConfig(16, 4, 16, 1, 2, 32, class_token=False),
        connector,
        decoder,
        compute_dtype="float32",
    )
    data = DataConfig({"easy_vqa": EasyVqaSource("easy_vqa")}, 80, holdout=4)
    settings = {
        "tasks": ("easy_vqa",),
        "batch_size": 16,
        "max_new_tokens": 1,
        "limit": 5,
    } | settings
    stage = Stage("finetune", model, data, OptimizerConfig(1e-3), 1, 1)
    return Recipe("tiny", "", {"finetune": stage}, evaluation=EvaluationConfig(**settings))


def make_params(recipe: Recipe, answer: str) -> dict:
    """A model that says `answer` to everything: the head sees a constant."""
    params = initialized(recipe.stages["finetune"].model)
    first = np.eye(16, dtype=np.float32)[0]
    silent = {
        path: np.zeros_like(value) if path.startswith("decoder/layers") else value
        for path, value in params.items()
    }
    head = np.zeros((16, TOKENIZER.vocabulary), np.float32)
    head[0, TOKENIZER.encode(answer)[0]] = 1.0
    changed = silent | {
        "decoder/embedding": np.tile(first, (TOKENIZER.vocabulary, 1)),
        "decoder/lm_head/kernel": head,
    }
    return {path: jax.numpy.asarray(value) for path, value in changed.items()}


@functools.cache
def initialized(model: VLMConfig) -> dict:
    return parameters.initialize(model, jax.random.key(1))


@pytest.fixture
def likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are what the models of `make_params` say, read off their heads: the programs that answer cost seconds."""

    def answer_all(_, params: dict, examples: list, **__: object) -> list[list[str]]:
        word = TOKENIZER.decode([int(params["decoder/lm_head/kernel"][0].argmax())]).strip()
        return [[word] * len(example.continuations) for example in examples]

    monkeypatch.setattr(Generator, "answer_all", answer_all)


def run(recipe: Recipe, params: dict, **options: object) -> dict:
    return evaluation.run(
        recipe,
        parameters.abstract(recipe.stages["finetune"].model)[0],
        params,
        TOKENIZER,
        **options,
    )


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """What a run finds of a model that says "no", and where it wrote."""
    recipe, folder = make_recipe(), tmp_path_factory.mktemp("scored")
    with (folder / "said.txt").open("w") as said:
        progress = ScoringProgress(Console(file=said, width=200))
        params = make_params(recipe, " no")
        return run(recipe, params, workdir=folder, progress=progress)["easy_vqa"], folder


def test_scores_and_files(scored: tuple[dict, Path]) -> None:
    result, folder = scored
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert {line["prediction"] for line in lines} == {"no"}
    share = sum(line["reference"] == "no" for line in lines) / len(lines)
    assert 0.2 < share < 0.8
    assert result["score"] == pytest.approx(share)
    assert result["n"] == len(lines) == sum(result["n_by_type"].values())
    assert result["by_type"]["shape"] == 0.0 and result["by_type"]["yes_no"] > result["score"]
    assert (
        set(result["baselines"])
        == set(result["baselines_by_type"])
        == {"question_only", "untrained"}
    )
    assert result["baselines"]["untrained"] < 0.2 < result["baselines"]["question_only"]
    assert len({line["image"] for line in lines}) == 5 and all(
        Path(line["image"]).is_file() for line in lines
    )
    assert result["partial"] == {"images": 5, "of": 1000}
    json.dumps(result)


def test_both_models_are_followed_to_their_last_question(scored: tuple[dict, Path]) -> None:
    result, folder = scored
    said = (folder / "said.txt").read_text().splitlines()
    assert sum("the first batch is compiled" in line for line in said) == 2
    for whose in ("easy_vqa", "easy_vqa, untrained"):
        assert f"{whose}: {result['n']:,} of {result['n']:,} questions" in said


def test_attention_file(scored: tuple[dict, Path]) -> None:
    with np.load(scored[1] / "attention.npz") as arrays:
        assert arrays["image"].shape == (16, 16, 3) and str(arrays["name"]) == "easy_vqa/test/0"
        assert arrays["windows"].tolist() == [4, 2]
        assert (arrays["scale_0"].shape, arrays["scale_1"].shape) == ((1, 2, 4, 4), (1, 1, 4, 4))


@pytest.mark.usefixtures("likeliest")
def test_untrained_is_optional_and_a_linear_connector_has_no_maps(tmp_path: Path) -> None:
    recipe = make_recipe(LinearConfig("linear", (1,)), untrained=False)
    result = run(recipe, make_params(recipe, " yes"), workdir=tmp_path)["easy_vqa"]
    assert set(result["baselines"]) == {"question_only"}
    with np.load(tmp_path / "attention.npz") as arrays:
        assert set(arrays) == {"image", "name", "windows"} and not arrays["windows"].size


@pytest.mark.usefixtures("likeliest")
def test_holdout_and_nothing_written(tmp_path: Path) -> None:
    recipe = make_recipe(untrained=False, limit=None)
    params = make_params(recipe, " yes")
    result = run(recipe, params, split="holdout")["easy_vqa"]
    assert 4 <= result["n"] < 4 * 21 and "partial" not in result
    whole = run(make_recipe(untrained=False, limit=4), params, split="holdout")["easy_vqa"]
    assert whole == result  # a limit that leaves nothing out
    assert not list(tmp_path.iterdir())


def test_unknown_task_no_task_and_preemption() -> None:
    recipe = make_recipe()
    params = make_params(recipe, " yes")
    with pytest.raises(InputError, match="easy_vqa"):
        run(make_recipe(tasks=("vqav2",)), params)
    assert run(make_recipe(tasks=()), params) == {}
    with pytest.raises(Preempted):
        run(recipe, params, should_stop=lambda: True)


@pytest.mark.usefixtures("likeliest")
def test_untrained_baseline_is_the_models_own_initialisation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = dataclasses.replace(make_recipe(), seed=7)
    params, fresh = make_params(recipe, " no"), make_params(recipe, " yes")

    def initialize(model: VLMConfig, key: jax.Array) -> dict:
        assert model is recipe.stages["finetune"].model
        of_this_seed = (jax.random.key_data(key) == jax.random.key_data(jax.random.key(7))).all()
        return {path: jax.numpy.where(of_this_seed, fresh[path], params[path]) for path in params}

    monkeypatch.setattr(parameters, "initialize", initialize)
    result = run(recipe, params)["easy_vqa"]
    # Of these images' questions some are answered "yes" and others "no": the two models share no right answer.
    assert result["baselines"]["untrained"] == pytest.approx(yes_share(recipe))
    assert result["score"] + result["baselines"]["untrained"] == pytest.approx(
        result["n_by_type"]["yes_no"] / result["n"]
    )


def yes_share(recipe: Recipe) -> float:
    """Share of the test questions of the recipe whose reference is "yes"."""
    stage = recipe.stages["finetune"]
    images = evaluation.find_task("easy_vqa").images(stage.data, "test")[: recipe.evaluation.limit]
    references = [question.reference for image in images for question in image.questions]
    return references.count("yes") / len(references)
