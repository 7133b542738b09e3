"""Whose a workdir is, and that it is never half written."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from mmjax.config.load import load
from mmjax.data.text.tokenizer import WordTokenizer
from mmjax.data.text.vocabulary import filled
from mmjax.errors import InputError
from mmjax.runs.workdir import Workdir, default_path, write_json
from tests import squares


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return squares.settings(squares.write_data(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def recipe(settings):
    return load(squares.__file__, settings)


def test_the_default_path_names_config_variant_and_overrides():
    assert str(default_path("configs/cos.py", {})) == "runs/cos"
    assert str(default_path("configs/cos.py:7b", {})) == "runs/cos-7b"
    one, two = default_path("cos.py", {"seed": "1"}), default_path("cos.py", {"seed": "2"})
    assert one != two
    assert one.name.startswith("cos-") and len(one.name) == len("cos-") + 8
    assert default_path("cos.py", {"a": "1", "b": "2"}) == default_path(
        "cos.py", {"b": "2", "a": "1"}
    )


def test_a_claimed_workdir_holds_the_recipe(tmp_path, recipe):
    workdir = Workdir(tmp_path / "runs" / "one")
    with workdir.claim(recipe) as (claimed, tokenizer):
        assert workdir.recipe() == claimed
    vocabulary = claimed.stages["squares"].model.decoder.vocabulary
    assert recipe.stages["squares"].model.decoder.vocabulary is None
    assert tokenizer.vocabulary <= vocabulary < tokenizer.vocabulary + 8
    with workdir.claim(recipe) as again:  # with the vocabulary still open: it is the same run
        assert again[0] == claimed
    with workdir.claim(claimed) as again:
        assert again[0] == claimed


def test_another_vocabulary_is_another_recipe(tmp_path, recipe):
    with Workdir(tmp_path).claim(recipe) as (claimed, _):
        vocabulary = claimed.stages["squares"].model.decoder.vocabulary
    message = f"stages.squares.model.decoder.vocabulary: {vocabulary} there, 4096 here"
    with pytest.raises(InputError, match=message), Workdir(tmp_path).claim(filled(recipe, 4096)):
        pass


def test_a_tokenizer_that_is_there_is_kept(tmp_path):
    """Its ids are those of the checkpoints, whatever becomes of the data."""
    data = squares.write_data(tmp_path)
    recipe, workdir = load(squares.__file__, squares.settings(data)), Workdir(tmp_path / "run")
    with workdir.claim(recipe) as (claimed, tokenizer):
        written = workdir.tokenizer.read_bytes()
    squares.write_records(data, [{"image": "0.png", "text": f"word {n}"} for n in range(50)])
    with workdir.claim(recipe) as (again, kept):
        assert again == claimed and kept.vocabulary == tokenizer.vocabulary
    assert workdir.tokenizer.read_bytes() == written


def test_the_tokenizer_of_another_run_is_refused(tmp_path, recipe):
    workdir = Workdir(tmp_path)
    with workdir.claim(recipe):
        before = workdir.config.read_bytes()
    words = [f"word{number}" for number in range(50)]
    WordTokenizer.build([" ".join(words)] * 9).save(workdir.tokenizer)
    with pytest.raises(InputError, match=r"decoder\.vocabulary"), workdir.claim(recipe):
        pass
    assert workdir.config.read_bytes() == before


def test_without_a_tokenizer_a_run_cannot_be_read(tmp_path, recipe):
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        Workdir(tmp_path).resolve(recipe)


def test_another_recipe_is_refused_with_what_differs(tmp_path, recipe, settings):
    workdir = Workdir(tmp_path)
    with workdir.claim(recipe):
        pass
    other = load(squares.__file__, settings | {"stages.squares.steps": "7", "seed": "3"})
    before = workdir.config.read_bytes()
    with pytest.raises(InputError) as caught, workdir.claim(other):
        pass
    assert "stages.squares.steps: 8 there, 7 here" in str(caught.value)
    assert "seed: 0 there, 3 here" in str(caught.value)
    assert workdir.config.read_bytes() == before


def test_settings_that_train_nothing_may_change(tmp_path, recipe, settings):
    with Workdir(tmp_path).claim(recipe):
        pass
    louder = load(squares.__file__, settings | {"logging.every": "1"})
    with Workdir(tmp_path).claim(louder):
        assert Workdir(tmp_path).recipe().logging.every == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "cos"}', "null"])
def test_a_damaged_config_is_refused(tmp_path, recipe, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError), Workdir(tmp_path).claim(recipe):
        pass


def test_a_folder_with_something_else_in_it_is_refused(tmp_path, recipe):
    (tmp_path / "thesis.tex").write_text("x")
    with (
        pytest.raises(InputError, match="is not the folder of a run"),
        Workdir(tmp_path).claim(recipe),
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, recipe):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError), Workdir(path).claim(recipe):
            pass


def test_there_is_no_recipe_where_there_is_no_run(tmp_path):
    with pytest.raises(InputError, match="There is no run in"):
        Workdir(tmp_path / "none").recipe()


def test_two_processes_cannot_share_a_workdir(tmp_path, recipe):
    script = "import sys, fcntl; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('locked', flush=True); sys.stdin.read()"
    workdir = Workdir(tmp_path)
    with workdir.claim(recipe):
        pass
    command = [sys.executable, "-c", script, str(tmp_path / ".lock")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match="Another process"), workdir.claim(recipe):
            pass
        other.kill()
    with workdir.claim(recipe):  # the kernel freed the lock
        pass


def test_json_is_written_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with path.open() as before:  # a reader of the old file is not disturbed
        write_json(path, {"a": 1})
        assert json.load(before) == {"a": 1}
        assert os.fstat(before.fileno()).st_ino != path.stat().st_ino
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    monkeypatch.setattr(os, "fsync", _fail)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


def _fail(_) -> None:
    raise KeyboardInterrupt


def test_what_only_one_recipe_has_is_named(tmp_path, recipe):
    with Workdir(tmp_path).claim(recipe):
        pass
    (stage,) = recipe.stages.values()
    other = dataclasses.replace(stage, name="other")
    changed = dataclasses.replace(recipe, stages={"other": other})
    with pytest.raises(InputError) as caught, Workdir(tmp_path).claim(changed):
        pass
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert lines == [
        "stages.squares: only there",
        "stages.other: only here",
        "order: ['squares'] there, ['other'] here",
    ]


def test_a_run_keeps_its_recipe_when_the_config_file_changes(tmp_path, recipe):
    with Workdir(tmp_path).claim(dataclasses.replace(recipe, notes={"why": "a note may change"})):
        pass
    with Workdir(tmp_path).claim(recipe):
        pass


@pytest.mark.parametrize("there", ["", "runs", "runs/one"])
def test_wrong_input_before_the_first_checkpoint_leaves_nothing_behind(tmp_path, recipe, there):
    """Folders that were there stay, and no other."""
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    before = [*tmp_path.rglob("*")]
    workdir = Workdir(tmp_path / "runs" / "one")
    with pytest.raises(InputError, match="no such image"), workdir.claim(recipe):
        workdir.summary.write_text("{}")
        raise InputError("no such image")
    assert [*tmp_path.rglob("*")] == before


def test_wrong_input_after_a_checkpoint_removes_nothing(tmp_path, recipe):
    workdir = Workdir(tmp_path / "run")
    with pytest.raises(InputError), workdir.claim(recipe):
        (workdir.checkpoints / "pretrain" / "10").mkdir(parents=True)
        raise InputError("too many samples are corrupt")
    assert workdir.config.exists() and (workdir.checkpoints / "pretrain" / "10").is_dir()
