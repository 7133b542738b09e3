"""Whose score it is: that of a run, or one that is kept beside it. What scores is made up; the run is trained."""

import dataclasses
import io
import json
import pathlib
import shutil

import pytest
from rich.console import Console

from mmjax.config.load import load
from mmjax.main import _read, parse
from mmjax.recipe.recipe import EvaluationConfig, Recipe
from mmjax.runs import run, score
from mmjax.runs.workdir import Workdir, default_path
from tests import squares

ALL = 2  # images that the task has


@pytest.fixture
def scorer(monkeypatch):
    """Scores 0.9, and 0.1 where an image is left out; writes predictions where it may. Its attribute: how often it was asked."""

    def scored(recipe, model_def, params, tokenizer, *, workdir=None, **_):
        scored.calls += 1
        settings = recipe.evaluation
        images = min(ALL, settings.limit or ALL)
        result = {"score": 0.9 if images == ALL else 0.1, "n": images, "by_type": {"x": 0.9}}
        result |= {"n_by_type": {"x": images}, "baselines": {}, "baselines_by_type": {}}
        if images < ALL:
            result["partial"] = {"images": images, "of": ALL}
        if workdir is not None and settings.tasks:
            text = "".join(json.dumps({"task": "t", "id": n}) + "\n" for n in range(images))
            (workdir / "predictions.jsonl").write_text(text)
        return dict.fromkeys(settings.tasks, result)

    scored.calls = 0
    monkeypatch.setattr(score.evaluation, "run", scored)
    return scored


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    data = squares.write_data(tmp_path_factory.mktemp("data"))
    settings = {"evaluation.tasks": "captions", "stages.squares.steps": "2"}
    return load(squares.__file__, squares.settings(data) | settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, recipe) -> pathlib.Path:
    """A run that is trained, and not scored."""
    path = tmp_path_factory.mktemp("runs") / "trained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "score_end", _stopped)
        with pytest.raises(KeyboardInterrupt):
            run.train(recipe, path, console=Console(file=io.StringIO()))
    return path


def _stopped(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.fixture
def workdir(trained, tmp_path) -> Workdir:
    return Workdir(shutil.copytree(trained, tmp_path / "run"))


def asked(recipe: Recipe, **settings) -> Recipe:
    evaluation = dataclasses.replace(recipe.evaluation, **settings)
    return dataclasses.replace(recipe, evaluation=evaluation)


def train(recipe: Recipe, workdir: Workdir) -> str:
    out = io.StringIO()
    run.train(recipe, workdir, console=Console(file=out, width=200))
    return out.getvalue()


def evaluate(recipe: Recipe, workdir: Workdir, **options) -> str:
    out = io.StringIO()
    score.evaluate(recipe, workdir, console=Console(file=out, width=200), **options)
    return out.getvalue()


def record(workdir: Workdir) -> dict[str, bytes]:
    """What a run says of itself, without what is noted beside."""
    paths = (workdir.config, workdir.summary, workdir.predictions, workdir.tokenizer)
    return {path.name: path.read_bytes() for path in paths}


def noted(workdir: Workdir) -> list[dict]:
    if not workdir.evaluations.exists():
        return []
    return [json.loads(line) for line in workdir.evaluations.read_text().splitlines()]


@pytest.mark.parametrize(
    "settings",
    [{"limit": 1}, {"max_caption_tokens": 3}, {"tasks": ()}, {"limit": 1, "untrained": False}],
)
def test_other_evaluation_settings_leave_the_record_of_a_run_alone(
    recipe, workdir, scorer, settings
):
    train(recipe, workdir)
    before = record(workdir)
    assert not noted(workdir)
    said = evaluate(asked(recipe, **settings), workdir)
    assert record(workdir) == before
    (line,) = noted(workdir)
    assert line["partial"] is ("limit" in settings)
    assert {key: line["evaluation"][key] for key in settings} == json.loads(json.dumps(settings))
    assert "noted in" in said and ("PARTIAL: the first 1 of 2 images" in said) is line["partial"]
    # Nor does it become another's when the run is trained on with them.
    said = train(asked(recipe, **settings), workdir)
    assert record(workdir) == before and scorer.calls == 2
    assert ("--mode=evaluate scores it with these" in said) is (settings != {"limit": 1})


def test_the_score_of_the_run_is_replaced_by_the_same_question_alone(recipe, workdir, scorer):
    train(recipe, workdir)
    before = json.loads(workdir.summary.read_text())
    before["eval"]["captions"]["score"] = 0.5  # of an older version, say
    workdir.summary.write_text(json.dumps(before))
    evaluate(asked(recipe, batch_size=1, limit=100), workdir)
    after = json.loads(workdir.summary.read_text())
    assert after["eval"]["captions"]["score"] == 0.9
    assert after["evaluation"] == before["evaluation"]
    assert workdir.recipe().evaluation == recipe.evaluation


def test_a_partial_score_is_never_that_of_a_run_that_has_none(recipe, workdir, scorer):
    evaluate(asked(recipe, limit=1), workdir)
    assert json.loads(workdir.summary.read_text())["eval"] == {}
    assert "on some of the images only" in workdir.report.read_text()
    train(recipe, workdir)
    assert json.loads(workdir.summary.read_text())["eval"]["captions"]["score"] == 0.9


def test_a_run_whose_recipe_limits_its_scoring_has_no_score_of_its_own(recipe, workdir, scorer):
    limited = asked(recipe, limit=1)
    said = train(limited, workdir)
    assert "PARTIAL: the first 1 of 2 images" in said and noted(workdir)[0]["partial"]
    assert json.loads(workdir.summary.read_text())["eval"] == {}
    page = workdir.report.read_text()
    assert "on some of the images only" in page and "the first 1 of 2 images" in page
    train(limited, workdir)
    assert scorer.calls == 1 and len(noted(workdir)) == 1  # it is done
    train(recipe, workdir)
    assert json.loads(workdir.summary.read_text())["eval"]["captions"]["n"] == ALL
    assert len(workdir.predictions.read_text().splitlines()) == ALL


def test_a_run_that_was_scored_on_nothing_takes_what_comes(recipe, workdir, scorer):
    train(asked(recipe, tasks=()), workdir)
    assert json.loads(workdir.summary.read_text())["eval"] == {}
    train(recipe, workdir)
    assert json.loads(workdir.summary.read_text())["eval"]["captions"]["score"] == 0.9
    assert workdir.recipe().evaluation == recipe.evaluation


def test_a_score_on_data_that_have_changed_is_kept_beside(tmp_path, scorer):
    (tmp_path / "data").mkdir()
    data = squares.write_data(tmp_path / "data")
    settings = {"evaluation.tasks": "captions", "stages.squares.steps": "2"}
    recipe, workdir = (
        load(squares.__file__, squares.settings(data) | settings),
        Workdir(tmp_path / "run"),
    )
    train(recipe, workdir)
    text = workdir.summary.read_text().replace("0.9", "0.8")  # as the old data gave
    workdir.summary.write_text(text)
    before = record(workdir)
    (data / "7.png").unlink()
    said = evaluate(recipe, workdir)
    assert record(workdir) == before and "7.png is gone" in said
    (line,) = noted(workdir)
    assert "7.png is gone" in line["changed_data"][0]
    assert "the data have changed since" in workdir.report.read_text()


def test_settings_of_scores_and_logs_name_no_folder():
    plain = default_path("cos.py:7b", {"seed": "1"})
    louder = {
        "seed": "1",
        "evaluation.limit": "20",
        "logging.every": "1",
        "evaluation.tasks": "captions",
    }
    assert default_path("cos.py:7b", louder) == plain
    assert str(default_path("cos.py", {"evaluation.limit": "20"})) == "runs/cos"
    assert default_path("cos.py", {"stages.pretrain.steps": "20"}).name != "cos"


@pytest.mark.parametrize("mode", ["evaluate", "generate", "train", "export"])
def test_every_mode_finds_the_run_whatever_it_is_asked_to_score(mode):
    def place(*settings: str) -> Workdir:
        return _read(parse(["mmjax", "--config=cos", f"--mode={mode}", *settings]))[1]

    own = "--config.stages.pretrain.steps=7"
    assert place("--config.evaluation.limit=20").path == place().path
    assert place(own, "--config.logging.every=3").path == place(own).path != place().path


def test_what_decides_a_score_is_neither_the_limit_nor_the_batch():
    settings = EvaluationConfig(("captions",))
    assert score.asks(dataclasses.replace(settings, limit=3, batch_size=2)) == score.asks(settings)
    assert score.asks(dataclasses.replace(settings, max_new_tokens=9)) != score.asks(settings)
