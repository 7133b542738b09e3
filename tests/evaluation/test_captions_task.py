"""Held-out captions of a (tiny, untrained) model: what it writes, and how likely it finds what people wrote."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image as Pillow

from mmjax import evaluation
from mmjax.config import load
from mmjax.data.images.decode import load_image
from mmjax.data.loader import batches
from mmjax.data.packing.rows import make_rows
from mmjax.data.sources.caption_split import normalised
from mmjax.data.sources.easy_vqa import EasyVqaSource
from mmjax.data.sources.jsonl import JsonlSource
from mmjax.data.text.templates import TEMPLATES
from mmjax.data.text.tokenizer import WordTokenizer
from mmjax.errors import InputError, Preempted
from mmjax.evaluation.scores import cider_d
from mmjax.evaluation.tasks.base import Question
from mmjax.evaluation.tasks.captions import CaptionsTask, other_images
from mmjax.inference.generate import Generator
from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.linear import LinearConfig
from mmjax.recipe.recipe import DataConfig, EvaluationConfig, OptimizerConfig, Recipe, Stage
from mmjax.runs.score import describe
from mmjax.training import metrics
from mmjax.training.step import make_evaluation_step
from mmjax.typing import Batch
from tests import squares

COLORS = ("red", "green", "blue", "white", "black", "pink", "gray", "brown", "orange", "yellow")
CAPTIONS = [f"A {color} square{'.' * (number % 2)}" for number, color in enumerate(COLORS)] + [
    "a blue square, once more"
]
TOKENIZER = WordTokenizer.build([*CAPTIONS, "a short image description: what? that"])
TASK = CaptionsTask()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> JsonlSource:
    """For tests that only read it."""
    return write_noise(tmp_path_factory.mktemp("squares"))


def write_noise(tmp_path: Path) -> JsonlSource:
    """Eleven images of noise, the first with a question beside its caption; the third caption once more, in other spelling."""
    rng = np.random.default_rng(0)
    for number in range(12):
        Pillow.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    records = [{"image": f"{number}.png", "text": text} for number, text in enumerate(CAPTIONS)]
    return write(tmp_path, [*records, {"image": "11.png", "text": "a BLUE square"}])


def write(folder: Path, records: list[dict]) -> JsonlSource:
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    return JsonlSource("jsonl", str(folder / "data.jsonl"), str(folder), holdout_by="caption")


def make_recipe(
    source: JsonlSource, holdout: int = 6, template: str = "plain", **settings: object
) -> Recipe:
    decoder = DecoderConfig(
        TOKENIZER.vocabulary, 16, 1, 2, 1, 8, 32, weight_std=0.5, embedding_std=1.0
    )
    vision = ViTConfig(8, 4, 16, 1, 2, 32, class_token=False, weight_std=0.5)
    model = VLMConfig(vision, LinearConfig("linear", (1,)), decoder, compute_dtype="float32")
    data = DataConfig({"squares": source}, 24, holdout=holdout, template=template)
    settings = {
        "tasks": ("captions",),
        "batch_size": 4,
        "max_caption_tokens": 3,
        "untrained": False,
    } | settings
    return Recipe(
        "tiny",
        "",
        {"only": Stage("only", model, data, OptimizerConfig(1e-3), 1, 1)},
        evaluation=EvaluationConfig(**settings),
    )


def make_params(recipe: Recipe) -> dict:
    return dict(initialized(recipe.stages["only"].model))


@functools.cache
def initialized(model: VLMConfig) -> dict:
    return parameters.initialize(model, jax.random.key(1))


def run(recipe: Recipe, params: dict, **options: object) -> dict:
    model_def, _ = parameters.abstract(recipe.stages["only"].model)
    return evaluation.run(recipe, model_def, params, TOKENIZER, **options)["captions"]


@pytest.fixture(scope="module")
def scored(source: JsonlSource, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """What one whole run finds, and where it wrote."""
    recipe, folder = make_recipe(source, untrained=True), tmp_path_factory.mktemp("scored")
    return run(recipe, make_params(recipe), workdir=folder), folder


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written, for tests of how likely captions are: the programs that write cost seconds."""
    monkeypatch.setattr(
        Generator,
        "answer_all",
        lambda _, params, examples, **__: [[""] * len(one.continuations) for one in examples],
    )


def test_result_and_predictions(scored: tuple[dict, Path]) -> None:
    result, folder = scored
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == result["n"] == 6 and {line["type"] for line in lines} == {"squares"}
    assert all(
        line["prediction"] and Path(line["image"]).is_file() and not line["question"]
        for line in lines
    )
    by_hand = cider_d(
        [line["prediction"] for line in lines], [[line["reference"]] for line in lines]
    )
    assert (
        result["score"]
        == pytest.approx(np.mean(by_hand))
        == pytest.approx(result["by_type"]["squares"])
    )
    assert (
        set(result["baselines"])
        == set(result["baselines_by_type"])
        == {"question_only", "untrained"}
    )
    assert result["metric"] == "CIDEr-D" and result["reference_score"] == pytest.approx(
        np.mean(
            cider_d([line["reference"] for line in lines], [[line["reference"]] for line in lines])
        )
    )
    assert result["nll_per_caption"] > result["nll"] > 0
    json.dumps(result)


def test_score_of_a_model_that_writes_every_second_caption(source: JsonlSource) -> None:
    images = TASK.images(make_recipe(source).stages["only"].data, "test")
    questions = [image.questions[0] for image in images]
    references = [question.reference for question in questions]
    answers = [
        reference.upper() if number % 2 else "" for number, reference in enumerate(references)
    ]
    score = TASK.score(questions, answers).score
    assert score == pytest.approx(
        np.mean(cider_d(answers, [[reference] for reference in references]))
    )
    assert 0.3 < score / TASK.score(questions, references).score < 0.7


def test_none_of_the_images_and_captions_is_trained_on(source: JsonlSource) -> None:
    recipe = make_recipe(source)
    data = recipe.stages["only"].data
    held = TASK.images(data, "test")
    assert [image.path for image in TASK.images(data, "holdout")] == [image.path for image in held]
    rows = make_rows(data, recipe.stages["only"].model, TOKENIZER, 0)
    trained = {name for index in range(len(rows)) for name in rows.sample_ids(index)}
    assert len(held) == len(trained) == 6 and trained.isdisjoint(image.example.id for image in held)
    captions = {
        normalised(text)
        for image in held
        for question in image.questions
        for text in question.references
    }
    texts = source.open(TEMPLATES["plain"], holdout=6).texts()
    assert captions.isdisjoint(map(normalised, texts))


@functools.cache
def full_pass(config: VLMConfig) -> Callable[[dict, Batch], jax.Array]:
    """(parameters, batch) to logits [B, T, V]."""
    model_def, _ = parameters.abstract(config)
    return jax.jit(lambda params, batch: model_def.merge(params)(batch))


def naive_nll(recipe: Recipe, params: dict, pairs: list[tuple[str, str]]) -> tuple[float, int]:
    """Sum in float64 over the tokens of each (path, caption), every one a row by itself in which each token sees all before it."""
    model = recipe.stages["only"].model
    visual, total, count = model.visual_tokens, 0.0, 0
    for path, caption in pairs:
        said = [*TOKENIZER.encode(caption), TOKENIZER.eos]
        written = [TOKENIZER.image] * visual + [TOKENIZER.bos, *said[:-1]]
        # Padded to one length, so that one program serves all.
        tokens = np.array([written + [TOKENIZER.pad] * (24 - len(written))], np.int32)
        places = np.arange(tokens.shape[1], dtype=np.int32)[None]
        nothing, one = np.full_like(tokens, -1), (places < len(written)).astype(np.int32)
        slots = np.where(places < visual, places, -1).astype(np.int32)
        pixels = load_image(path, 8)[None, None]
        logits = full_pass(model)(
            params,
            Batch(tokens, nothing, one, 0 * one, places, pixels, np.ones((1, 1), bool), slots),
        )
        shown = np.asarray(logits, np.float64)[0, visual : len(written)]
        total += sum(
            np.log(np.exp(row).sum()) - row[token] for row, token in zip(shown, said, strict=True)
        )
        count += len(said)
    return total, count


def test_likelihood_is_the_loss_by_hand(source: JsonlSource, scored: tuple[dict, Path]) -> None:
    recipe = make_recipe(source)
    params = make_params(recipe)
    images = TASK.images(recipe.stages["only"].data, "test")
    captions = [image.questions[0].reference for image in images]
    result, _ = scored
    total, count = naive_nll(
        recipe,
        params,
        [(image.path, caption) for image, caption in zip(images, captions, strict=True)],
    )
    assert result["nll"] == pytest.approx(total / count, rel=1e-5)
    assert result["nll_per_caption"] == pytest.approx(total / 6, rel=1e-5)
    others = other_images([image.questions[0] for image in images])
    wrong = [(images[other].path, caption) for other, caption in zip(others, captions, strict=True)]
    total, count = naive_nll(recipe, params, wrong)
    assert result["nll_shuffled"] == pytest.approx(total / count, rel=1e-5)
    assert abs(result["nll_shuffled"] - result["nll"]) > 1e-3, "this model sees"


@pytest.mark.parametrize(
    "template", [pytest.param("plain", marks=pytest.mark.slow), "short_prompt"]
)
@pytest.mark.usefixtures("silent")
def test_likelihood_is_the_held_out_loss_of_training(source: JsonlSource, template: str) -> None:
    recipe = make_recipe(source, template=template)
    stage, params = recipe.stages["only"], make_params(recipe)
    step, total = make_evaluation_step(parameters.abstract(stage.model)[0]), None
    with batches(make_rows(stage.data, stage.model, TOKENIZER, 0, "holdout"), 4, 0, 0) as data:
        for batch, _ in data:
            new = step(params, batch)
            total = new if total is None else metrics.merge(total, new)
    assert run(recipe, params)["nll"] == pytest.approx(metrics.summary(total)["loss"], rel=1e-5)


@pytest.mark.usefixtures("silent")
def test_a_model_that_does_not_look_finds_captions_as_likely_beside_other_images(
    source: JsonlSource,
) -> None:
    recipe = make_recipe(source)
    params = {
        path: np.zeros_like(value) if path.startswith("connector/") else value
        for path, value in make_params(recipe).items()
    }
    result = run(recipe, params)
    assert result["nll_shuffled"] == pytest.approx(result["nll"], rel=1e-6)


def question(*captions: str) -> Question:
    return Question("", captions[0], "x", captions[1:])


def test_other_images_have_other_captions() -> None:
    assert other_images([question("a"), question("A!"), question("b"), question("c")]) == [
        2,
        2,
        3,
        0,
    ]
    assert other_images([question("a"), question("b", "a"), question("c")]) == [2, 2, 0]
    assert other_images([question("a"), question("a")]) is None
    assert other_images([question("a")]) is None


@pytest.mark.usefixtures("silent")
def test_captions_of_one_image_are_scored_together(tmp_path: Path) -> None:
    Pillow.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Pillow.new("RGB", (8, 8), "red").save(tmp_path / "b.png")
    records = [
        {"image": name, "text": text}
        for name, text in (("a.png", "A red square"), ("b.png", "that"), ("a.png", "what?"))
    ]
    source = write(tmp_path, [*records, {"image": "c.png", "text": "a pink square"}])
    recipe = make_recipe(dataclasses.replace(source, holdout_by="position"), holdout=3)
    write(tmp_path, [{"image": "c.png", "text": "a pink square"}, *records])
    images = TASK.images(recipe.stages["only"].data, "test")
    assert [image.questions[0].references for image in images] == [
        ("A red square", "what?"),
        ("that",),
    ]
    params = make_params(recipe)
    total, count = naive_nll(
        recipe, params, [(str(tmp_path / record["image"]), record["text"]) for record in records]
    )
    result = run(recipe, params)
    assert (result["nll"], result["nll_per_caption"]) == pytest.approx(
        (total / count, total / 3), rel=1e-5
    )
    assert TASK.score(
        [image.questions[0] for image in images], ["what?", "that"]
    ).score == pytest.approx(
        np.mean(cider_d(["what", "that"], [["a red square", "what"], ["that"]]))
    )


def test_question_only_is_the_most_frequent_training_caption(tmp_path: Path) -> None:
    texts = ["a red square", "that", "That", "that", "a red square", "what?", "a pink square"]
    source = dataclasses.replace(
        write(
            tmp_path,
            [{"image": f"{number}.png", "text": text} for number, text in enumerate(texts)],
        ),
        holdout_by="position",
    )
    data = make_recipe(source, holdout=2).stages["only"].data
    assert TASK.question_only_baseline(data, "test", [question("x"), question("y")]) == [
        "that",
        "that",
    ]
    assert TASK.question_only_baseline(
        dataclasses.replace(data, holdout=6), "test", [question("x")]
    ) == ["a red square"], "what is held out says nothing"


def test_prompts_are_those_of_training(source: JsonlSource) -> None:
    asked = TASK.images(make_recipe(source, template="short_prompt").stages["only"].data, "test")[0]
    assert asked.questions[0].text == "a short image description:"
    written = "".join(getattr(segment, "text", "|") for segment in asked.example.continuations[0])
    assert written == "|a short image description:", "up to where the caption begins"


def test_examples_without_caption_or_image_are_skipped(tmp_path: Path) -> None:
    source = write_noise(tmp_path)
    more = [
        {"text": "no image"},
        {"image": "0.png", "questions": [["what?", "that"]]},
        {"image": "0.png", "text": 3},
    ]
    Path(source.path).write_text(
        "\n".join([json.dumps({"image": "1.png", "text": "that"}), *map(json.dumps, more), "{"])
    )
    data = (
        make_recipe(dataclasses.replace(source, holdout_by="position"), holdout=4)
        .stages["only"]
        .data
    )
    with pytest.raises(
        InputError, match="no source of the stage holds out an image with a caption"
    ):
        TASK.images(data, "test")
    Path(source.path).write_text(
        "\n".join([*map(json.dumps, more), "{", json.dumps({"image": "1.png", "text": "that"})])
    )
    assert [image.questions[0].reference for image in TASK.images(data, "test")] == ["that"]


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    source = write_noise(tmp_path)
    recipe = make_recipe(source)
    for path in Path(source.image_dir).glob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match="An image cannot be used: missing image"):
        run(recipe, make_params(recipe))


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        (0, "answering"),
        pytest.param(2, "how likely", marks=pytest.mark.slow),
        pytest.param(3, "how likely", marks=pytest.mark.slow),
        (4, "how likely"),
    ],
)
def test_a_stop_is_answered_between_batches(source: JsonlSource, asked: int, where: str) -> None:
    """Two batches are answered, then two are measured, and two beside other images."""
    recipe = make_recipe(source)
    answers = iter([False] * asked + [True])
    with pytest.raises(Preempted, match=where):
        run(recipe, make_params(recipe), should_stop=lambda: next(answers))


def test_beside_another_task_with_a_limit_and_short_captions(
    source: JsonlSource, tmp_path: Path
) -> None:
    recipe = make_recipe(
        source, tasks=("easy_vqa", "captions"), limit=2, max_caption_tokens=1, max_new_tokens=3
    )
    model_def, _ = parameters.abstract(recipe.stages["only"].model)
    scores = evaluation.run(recipe, model_def, make_params(recipe), TOKENIZER, workdir=tmp_path)
    assert "metric" not in scores["easy_vqa"] and "nll" not in scores["easy_vqa"]
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    tasks = [line["task"] for line in lines]
    assert tasks == ["easy_vqa"] * scores["easy_vqa"]["n"] + ["captions"] * 2
    assert scores["captions"]["n"] == 2
    lengths = [len(TOKENIZER.encode(line["prediction"])) for line in lines]
    assert max(lengths[-2:]) <= 1 < max(lengths[:-2])
    assert scores["easy_vqa"]["partial"] == {"images": 2, "of": 1000}
    assert scores["captions"]["partial"] == {"images": 2, "of": 6}
    easy, captions = describe(scores)
    assert "PARTIAL: the first 2 of 1,000 images" in easy and "PARTIAL" in captions
    assert " questions (" in easy and "%" not in captions
    assert (
        "captions: CIDEr-D " in captions
        and "on 2 images (squares " in captions
        and "nats per token, " in captions
    )


def test_problems(source: JsonlSource) -> None:
    recipe = make_recipe(source)
    stage = recipe.stages["only"]

    def problems(*stages: Stage) -> list[str]:
        return list(
            TASK.problems(
                dataclasses.replace(recipe, stages={stage.name: stage for stage in stages})
            )
        )

    def change(stage: Stage, **data: object) -> Stage:
        return dataclasses.replace(stage, data=dataclasses.replace(stage.data, **data))

    first = dataclasses.replace(stage, name="first")
    assert problems(stage) == problems(first, stage) == []
    (message,) = problems(first, change(stage, sources={"easy_vqa": EasyVqaSource("easy_vqa")}))
    assert "the last stage, only, has no source whose captions can be scored (jsonl)" in message
    (message,) = problems(change(stage, holdout=0))
    assert "config.stages.only.data.holdout is 0" in message
    for other in (
        change(first, holdout=5),
        change(first, sources={"x": dataclasses.replace(source, holdout_by="position")}),
    ):
        (message,) = problems(other, stage)
        assert (
            "config.stages.first.data.sources." in message
            and "reads the same file as stage only" in message
        )
    assert (
        problems(
            change(first, sources={"x": dataclasses.replace(source, path="other")}, holdout=0),
            stage,
        )
        == []
    )


def test_a_config_that_has_nothing_to_score_is_refused_before_it_trains(tmp_path: Path) -> None:
    changes = squares.settings(squares.write_data(tmp_path)) | {"evaluation.tasks": "captions"}
    assert load.load(squares.__file__, changes).evaluation.tasks == ("captions",)
    with pytest.raises(
        InputError, match=r"config.stages.squares.data.holdout is 0: no captions are held out"
    ):
        load.load(squares.__file__, changes | {"stages.squares.data.holdout": "0"})
    with pytest.raises(InputError, match=r"has no source whose captions can be scored"):
        load.load(str(squares.ROOT / "configs" / "cos.py"), {"evaluation.tasks": "captions"})
    with pytest.raises(InputError, match=r"max_caption_tokens must be positive, not 0"):
        load.load(squares.__file__, changes | {"evaluation.max_caption_tokens": "0"})
