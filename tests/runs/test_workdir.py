"""Whose a workdir is, and that it is never half written."""

import dataclasses
import fcntl
import json
import os
import shutil
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


LEFT = {  # by processes that ended before config.json was written: files, and folders with a slash
    "only the folder": (),
    "the lock": (".lock",),
    "a draft": (".lock", ".config.json.999999999"),
    "folders first": (".lock", "manifests/", "parameters/", "previews/", "checkpoints/"),
}


@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT)
def test_a_folder_that_was_only_begun_is_fresh(tmp_path, recipe, left):
    for name in left:
        path = tmp_path / name
        path.mkdir() if name.endswith("/") else path.write_text("{")
    with Workdir(tmp_path).claim(recipe) as (claimed, _):
        assert Workdir(tmp_path).recipe() == claimed
    assert not list(tmp_path.glob(".config.json*"))


@pytest.mark.parametrize("name", ["checkpoints/pretrain/10", "notes/x", "manifests/a.json"])
def test_a_folder_with_results_and_no_config_is_refused(tmp_path, recipe, name):
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(InputError, match="put its config"):
        Workdir(tmp_path).check(recipe)


def test_nothing_but_the_lock_is_there_until_the_config_is(tmp_path, recipe, monkeypatch):
    found = []

    def look(path, content):
        found.append(sorted(path.name for path in tmp_path.iterdir()))
        write_json(path, content)

    monkeypatch.setattr("mmjax.runs.workdir.write_json", look)
    with Workdir(tmp_path).claim(recipe):
        assert {"checkpoints", "manifests", "parameters", "previews"} <= {
            path.name for path in tmp_path.iterdir()
        }
    assert found == [[".lock"]]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_ends_the_first_write_leaves_a_folder_that_can_be_used(
    tmp_path, recipe, monkeypatch, error
):
    def fail(_):
        raise error

    workdir = Workdir(tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, InputError)):
        patch.setattr(os, "fsync", fail)
        with workdir.claim(recipe):
            pass
    assert not workdir.config.exists() and not list(tmp_path.glob("run/.config*"))
    with workdir.claim(recipe):
        pass


def test_drafts_of_processes_that_are_gone_are_cleared_and_no_others(tmp_path, recipe):
    with Workdir(tmp_path).claim(recipe):
        pass
    gone = [".summary.json.999999999", ".999999999.attention.npz", "manifests/.a.json.999999999"]
    kept = [f".report.html.{os.getpid()}", "notes.1", ".hidden"]
    for name in (*gone, *kept):
        (tmp_path / name).write_text("x")
    with Workdir(tmp_path).claim(recipe):
        pass
    assert not any((tmp_path / name).exists() for name in gone)
    assert all((tmp_path / name).exists() for name in kept)


def test_the_first_of_two_runs_may_be_before_its_config(tmp_path, recipe):
    """The second is told that there is another process, and not that the folder is none of a run."""
    with Workdir(tmp_path)._locked():
        with pytest.raises(InputError, match="Another process"), Workdir(tmp_path).claim(recipe):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_lock_that_its_owner_removed_locks_nothing(tmp_path, recipe, monkeypatch):
    """Wrong input makes the owner remove it, between our opening it and our asking for it."""
    take, calls = fcntl.flock, []

    def flock(file, operation):
        calls.append(None)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()
        take(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with Workdir(tmp_path).claim(recipe):
        assert len(calls) == 2 and (tmp_path / ".lock").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "cannot be written: No space left on device"),
        (OSError(30, "Read-only file system"), "cannot be written: Read-only file system"),
        (OSError(27, "File too large"), "cannot be written: File too large"),
    ],
)
def test_a_disk_that_fails_during_a_run_is_one_message(tmp_path, recipe, error, message):
    with pytest.raises(InputError, match=message), Workdir(tmp_path).claim(recipe):
        raise error


def test_a_workdir_that_vanishes_is_one_message(tmp_path, recipe):
    workdir = Workdir(tmp_path / "run")
    with pytest.raises(InputError, match="cannot be written: No such file"), workdir.claim(recipe):
        shutil.rmtree(workdir.path)
        workdir.metrics.write_text("")


def test_other_errors_of_files_are_none_of_the_workdir(tmp_path, recipe):
    for error in (FileNotFoundError(2, "No such file", "/elsewhere"), ConnectionResetError()):
        with pytest.raises(type(error)), Workdir(tmp_path).claim(recipe):
            raise error


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 2500, "latin-1-\udce9", "\udcff/below"])
def test_a_path_that_no_file_can_have_is_one_message(tmp_path, recipe, name):
    for workdir in (Workdir(tmp_path / name), Workdir(tmp_path / name / "run")):
        with (
            pytest.raises(InputError, match=r"cannot be (used|written)|is not UTF-8"),
            workdir.claim(recipe),
        ):
            pass
    assert not list(tmp_path.iterdir())
