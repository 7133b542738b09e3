"""A whole recipe on a handful of images: what is on disk afterwards, that it goes on where it stopped, and what can be asked of it then."""

import dataclasses
import io
import json
import os
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
from PIL import Image as PillowImage
from rich.console import Console

from mmjax.config.load import recipe_from
from mmjax.data.examples import Image
from mmjax.data.sources.llava import LlavaSource
from mmjax.data.text.templates import TEMPLATES, prompt_of
from mmjax.data.text.vocabulary import filled
from mmjax.distributed.mesh import make_mesh
from mmjax.errors import InputError, Preempted
from mmjax.recipe.recipe import CheckpointConfig, DataConfig, LoggingConfig, OptimizerConfig, Recipe
from mmjax.recipe.serialization import digest
from mmjax.runs import answer, run
from mmjax.runs.answer import generate, open_run, request
from mmjax.runs.initial_params import initial_params
from mmjax.runs.score import evaluate
from mmjax.runs.workdir import Workdir
from mmjax.training.checkpoint import load_params
from mmjax.transitions import Manifest

STEPS = {"pretrain": 3, "finetune": 2}
STEPS_TO_LEARN, EARLY = 150, 10
COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}


def make_recipe(folder: pathlib.Path, **changes) -> Recipe:
    """Two stages, 1 and then 5 visual tokens, on nine images of one color each."""
    lines = []
    for index, color in enumerate([*COLORS] * 3):
        PillowImage.new("RGB", (16, 16), COLORS[color]).save(folder / f"{index}.png")
        lines.append(
            json.dumps(
                {
                    "image": f"{index}.png",
                    "questions": [
                        ["what color is it?", color],
                        ["is it red?", "yes" if color == "red" else "no"],
                    ],
                }
            )
        )
    (folder / "data.jsonl").write_text("\n".join(lines))
    source = {"kind": "jsonl", "path": str(folder / "data.jsonl"), "image_dir": str(folder)}
    common = {
        "data": {"sources": {"colors": source}, "text_length": 24, "holdout": 2},
        "optimizer": {"learning_rate": 1e-2},
        "batch_size": 2,
    }
    tiny = {"width": 8, "layers": 1, "heads": 2, "mlp_width": 16}
    connector = {
        "kind": "resampler",
        "feature_layers": (1,),
        "width": 8,
        "head_dim": 4,
        "mlp_width": 16,
    }
    tree = {
        "model": {
            "vision": {"patch_size": 4, "class_token": False, "embedding_norm": False, **tiny},
            "connector": connector,
            "decoder": {"vocabulary": None, "kv_heads": 1, "head_dim": 4, **tiny},
            "compute_dtype": "float32",
        },
        "stages": {
            "pretrain": {
                "model": {
                    "vision": {"image_size": 8},
                    "connector": {"windows": (2,), "queries": (1,)},
                },
                "steps": STEPS["pretrain"],
                **common,
            },
            "finetune": {
                "model": {
                    "vision": {"image_size": 16},
                    "connector": {"windows": (4, 2), "queries": (1, 4), "parents": (0, 0)},
                },
                "transitions": ("inflate", "resize_positions"),
                "steps": STEPS["finetune"],
                **common,
            },
        },
        "logging": {"every": 1, "trackers": ("jsonl",)},
        **changes,
    }
    return recipe_from(tree, name="colors")


def train(recipe: Recipe, path: pathlib.Path, **options) -> str:
    """Trains, and returns what was printed."""
    out = io.StringIO()
    run.train(recipe, Workdir(path), console=Console(file=out, width=200), **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    return make_recipe(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, recipe) -> tuple[Workdir, str]:
    path = tmp_path_factory.mktemp("runs") / "whole"
    text = train(recipe, path)
    return Workdir(path), text


def test_a_finished_run_has_everything(finished, recipe):
    workdir, _ = finished
    summary = json.loads(workdir.summary.read_text())
    assert summary["schema_version"] == 1
    assert summary["config_digest"] == digest(workdir.recipe())
    assert [
        (stage["name"], stage["steps"], stage["samples"], stage["visual_tokens_per_image"])
        for stage in summary["stages"]
    ] == [("pretrain", 3, 6, 1), ("finetune", 2, 4, 5)]
    for stage in summary["stages"]:
        assert stage["flops"] > 0 and stage["tokens"] > 0
        assert stage["seconds"] == pytest.approx(sum(stage["seconds_by_cause"].values()))
        assert (stage["devices"], stage["device_seconds"]) == (
            len(jax.devices()),
            pytest.approx(stage["seconds"] * len(jax.devices())),
        )
        assert np.isfinite(stage["held_out_loss"])
    assert {"python", "jax"} <= summary["versions"].keys()
    assert summary["hardware"]["devices"] == len(jax.devices())
    for stage in recipe.stages:
        assert "image" in workdir.preview(stage, ".txt").read_text()
        assert workdir.preview(stage, ".png").stat().st_size > 0
        assert "Trained" in workdir.parameters(stage).read_text()
    assert "<html" in workdir.report.read_text()
    assert workdir.recipe() == workdir.resolve(recipe)[0] != recipe


def test_manifests_account_for_every_parameter(finished, recipe):
    workdir, text = finished
    first, second = (
        Manifest.from_json(json.loads(workdir.manifest(stage).read_text())) for stage in STEPS
    )
    assert {entry.how for entry in first.entries} == {"fresh"}
    assert {entry.how for entry in second.entries} == {"copied", "tiled", "resized"}
    saved, _ = load_params(workdir.checkpoints / "finetune" / "2")
    assert {entry.target for entry in second.entries} == set(saved)
    assert second.summary() in text


def test_the_vocabulary_fits_the_tokenizer(finished, recipe):
    workdir, _ = finished
    resolved, tokenizer = workdir.resolve(recipe)
    assert resolved == workdir.recipe()
    vocabulary = resolved.stages["finetune"].model.decoder.vocabulary
    assert tokenizer.vocabulary <= vocabulary < tokenizer.vocabulary + 8 and vocabulary % 8 == 0
    params, _ = load_params(workdir.checkpoints / "finetune" / "2")
    assert params["decoder/embedding"].shape[0] == vocabulary


def test_a_decoder_without_room_for_the_tokenizer_is_refused(tmp_path, recipe):
    with pytest.raises(InputError, match=r"vocabulary must be at least the \d+ tokens .* not 100"):
        train(filled(recipe, 100), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_same_command_repeats_nothing(finished, recipe, monkeypatch):
    workdir, _ = finished
    monkeypatch.setattr(run, "train_stage", _never)
    monkeypatch.setattr(run, "score_end", _never)
    before = workdir.summary.read_bytes()
    said = train(recipe, workdir.path)
    assert "report:" in said and "finished already" in said
    assert workdir.summary.read_bytes() == before


def test_a_stage_that_another_one_has_followed_may_lose_its_checkpoints(
    finished, recipe, monkeypatch, tmp_path
):
    workdir, _ = finished
    copy = Workdir(shutil.copytree(workdir.path, tmp_path / "copy"))
    shutil.rmtree(copy.checkpoints / "pretrain")
    monkeypatch.setattr(run, "train_stage", _never)
    assert "report:" in train(recipe, copy.path)


def test_what_is_frozen_and_random_is_said(recipe, tmp_path, finished):
    frozen = dataclasses.replace(recipe.stages["pretrain"], trainable=("vision/*", "connector/*"))
    said, workdir = [], Workdir(tmp_path)
    workdir.manifest("pretrain").parent.mkdir()
    initial_params(
        recipe,
        filled(dataclasses.replace(recipe, stages={"pretrain": frozen}), 64).stages["pretrain"],
        make_mesh(recipe.mesh),
        workdir,
        trained=_never,
        say=said.append,
    )
    assert any("(decoder) are random numbers and stay so" in text for text in said)
    assert "random numbers" not in finished[1]


def test_a_run_that_was_stopped_goes_on_to_the_same_parameters(finished, recipe, tmp_path):
    """Stopped at the very end of a stage, and then within the next one."""
    workdir, _ = finished
    for steps, newest in ((3, (3, None)), (1, (3, 1))):
        assert "as asked" in train(recipe, tmp_path, stop_after_steps=steps)
        assert tuple(Workdir(tmp_path).newest_step(stage) for stage in STEPS) == newest
        assert not (tmp_path / "report.html").exists()
    train(recipe, tmp_path)
    expected, _ = load_params(workdir.checkpoints / "finetune" / "2")
    found, _ = load_params(tmp_path / "checkpoints" / "finetune" / "2")
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


@pytest.fixture(scope="module")
def learned(tmp_path_factory, recipe) -> tuple[Recipe, Workdir]:
    """The first stage alone, long enough to tell red from the others; an early step was kept, too."""
    stage = dataclasses.replace(
        recipe.stages["pretrain"], steps=STEPS_TO_LEARN, optimizer=OptimizerConfig(2e-2)
    )
    recipe = dataclasses.replace(
        recipe,
        stages={"pretrain": stage},
        checkpoint=CheckpointConfig(every=EARLY, keep_last=STEPS_TO_LEARN // EARLY),
        logging=LoggingConfig(trackers=()),
    )
    workdir = Workdir(tmp_path_factory.mktemp("runs") / "learned")
    train(recipe, workdir.path)
    return recipe, workdir


def draw(folder: pathlib.Path, color: str) -> str:
    """An image of one color, of another size than those of the training."""
    path = folder / f"{color}.png"
    PillowImage.new("RGB", (40, 30), COLORS[color]).save(path)
    return str(path)


def test_an_open_run_answers_again_without_loading_again(learned, tmp_path, monkeypatch):
    """What is said depends on the image and on the question."""
    _, workdir = learned
    opened = open_run(workdir.path)
    monkeypatch.setattr(answer, "read_params", _never)

    def answers(color: str) -> list[str]:
        image = draw(tmp_path, color)
        return [opened.answer(image, text) for text in ("what color is it?", "is it red?")]

    assert answers("red") == ["red", "yes"]
    color, is_red = answers("blue")
    assert color in ("blue", "green") and is_red == "no"
    assert isinstance(opened.answer(None, "is it red?"), str)
    assert opened.recipe == workdir.recipe() and opened.stage.name == "pretrain"
    assert opened.checkpoint == workdir.checkpoints / "pretrain" / str(STEPS_TO_LEARN)
    assert opened.scores == {}
    with pytest.raises(InputError, match="There is no image"):
        opened.answer("none.png", "what color is it?")


def test_a_question_is_answered_by_the_checkpoint_that_is_named(learned, tmp_path):
    recipe, workdir = learned
    early = str(workdir.checkpoints / "pretrain" / str(EARLY))
    asked = {"image": draw(tmp_path, "red"), "prompt": "what color is it?"}
    assert generate(recipe, workdir, **asked) == "red"
    assert generate(recipe, workdir, **asked, checkpoint=early) != "red"


def test_an_image_alone_gets_what_the_model_writes_behind_it(learned, tmp_path):
    recipe, workdir = learned
    image = draw(tmp_path, "red")
    written = generate(recipe, workdir, image=image, prompt=None)
    assert written == open_run(workdir.path).answer(image, "")


def test_words_that_the_model_has_never_read_are_named(learned, tmp_path, capsys):
    recipe, workdir = learned
    asked = {"image": draw(tmp_path, "red")}
    generate(recipe, workdir, **asked, prompt="Which colour is it?")
    said = capsys.readouterr().err
    assert "Which, colour" in said and "is" not in said.rpartition(": ")[2].split(", ")
    generate(recipe, workdir, **asked, prompt="what color is it?")
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": None, "prompt": None}, "--prompt is missing"),
        ({"image": "none.png", "prompt": "what?"}, "There is no image 'none.png'"),
        (
            {"image": None, "prompt": "what?", "checkpoint": "none/3"},
            "There is no checkpoint none/3",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused(finished, recipe, options, message):
    with pytest.raises(InputError, match=message):
        generate(recipe, finished[0], **options)


def test_an_answer_can_be_stopped(finished, recipe, monkeypatch):
    def load(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return read(*args)

    read = answer.read_params
    monkeypatch.setattr(answer, "read_params", load)
    with pytest.raises(Preempted, match=r"nothing to save|answering questions"):
        generate(recipe, finished[0], image=None, prompt="what color is it?")


def test_a_image_that_is_none_is_refused(finished, recipe, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InputError, match=r"text\.png"):
        generate(recipe, finished[0], image=str(tmp_path / "text.png"), prompt="what?")


def test_a_finished_run_can_be_scored_again(finished, recipe):
    workdir, _ = finished
    out = io.StringIO()
    evaluate(recipe, workdir, console=Console(file=out, width=200))
    assert "report:" in out.getvalue()
    assert [stage["name"] for stage in json.loads(workdir.summary.read_text())["stages"]] == list(
        STEPS
    )


def test_an_earlier_checkpoint_is_scored_beside_the_run(finished, recipe):
    workdir, _ = finished
    before = workdir.summary.read_bytes()
    evaluate(
        recipe,
        workdir,
        checkpoint=str(workdir.checkpoints / "pretrain" / "3"),
        console=Console(file=io.StringIO()),
    )
    assert workdir.summary.read_bytes() == before


def test_without_a_checkpoint_there_is_nothing_to_score(recipe, tmp_path):
    for call in (evaluate, lambda *args: generate(*args, image=None, prompt="what?")):
        with pytest.raises(InputError, match="There is no checkpoint in"):
            call(recipe, Workdir(tmp_path / "empty"))
    assert not (tmp_path / "empty").exists()


def test_a_checkpoint_of_another_recipe_is_refused(recipe, tmp_path):
    (tmp_path / "checkpoints" / "other" / "3").mkdir(parents=True)
    with pytest.raises(
        InputError, match="is a checkpoint of stage 'other'; the recipe has pretrain, finetune"
    ):
        Workdir(tmp_path).find_checkpoint(recipe, str(tmp_path / "checkpoints" / "other" / "3"))


def test_the_checkpoint_of_a_run_with_other_settings_is_refused(finished, recipe, tmp_path):
    """Its parameters have the same names and shapes, so only the recipe's digest tells."""
    workdir, _ = finished
    other = dataclasses.replace(recipe, seed=7)
    path = workdir.checkpoints / "finetune" / str(STEPS["finetune"])
    with pytest.raises(InputError, match="was made by another recipe"):
        evaluate(
            other,
            Workdir(tmp_path / "other"),
            checkpoint=str(path),
            console=Console(file=io.StringIO()),
        )


def test_a_damaged_summary_is_refused(finished, recipe, tmp_path):
    with Workdir(tmp_path).claim(recipe):
        pass
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary\.json cannot be read"):
        train(recipe, tmp_path)


def _never(*args, **kwargs):
    raise AssertionError("a finished stage was repeated")


@pytest.mark.parametrize("template", ["plain", "vicuna_v1", "llama3"])
def test_a_request_is_a_training_conversation_up_to_its_answer(template, tmp_path):
    """With LLaVA-style data the image stands in the user's turn, where training has put it."""
    (tmp_path / "0.png").write_bytes(b"")
    turns = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a cat"}]
    (tmp_path / "talk.json").write_text(
        json.dumps([{"id": 0, "image": "0.png", "conversations": turns}])
    )
    source = LlavaSource("llava", str(tmp_path / "talk.json"), str(tmp_path))
    trained = source.open(TEMPLATES[template])[0]
    asked = request(
        DataConfig({"talk": source}, 64, template=template), str(tmp_path / "0.png"), "what is it?"
    )
    assert asked.prefix == trained.prefix == ()

    def shown(continuation):
        return [
            segment.source if isinstance(segment, Image) else segment for segment in continuation
        ]

    assert shown(asked.continuations[0]) == shown(prompt_of(trained.continuations[0]))
