"""Whole runs from the command line: an image that cannot be read, a kill, other loader processes, another recipe in the same folder."""

import json
import pathlib
import signal
import time

import pytest

from mmjax.config.load import load
from mmjax.data.packing.rows import Rows, make_rows
from mmjax.data.text.vocabulary import make_tokenizer
from tests import squares
from tests.crash import held

pytestmark = pytest.mark.slow
LIMIT = 300
CORRUPT = "data.jsonl:2"
CAUSE = "corrupt image"
BUDGET = {"data__skip_budget": "0.5"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    folder = squares.write_data(tmp_path_factory.mktemp("data"))
    (folder / "1.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def rows(data) -> Rows:
    """What a run reads."""
    recipe = load(squares.__file__, squares.settings(data))
    stage = recipe.stages["squares"]
    return make_rows(stage.data, stage.model, make_tokenizer(recipe), recipe.seed)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> tuple[pathlib.Path, str]:
    """A run that nothing interrupts, and what it said."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, finish(data, workdir)


def finish(data: pathlib.Path, workdir: pathlib.Path, **changes: str) -> str:
    child = squares.train(data, workdir, **BUDGET, **changes)
    said, errors = child.communicate(timeout=LIMIT)
    assert child.returncode == 0, errors
    return said


def summary(workdir: pathlib.Path) -> dict:
    (stage,) = json.loads((workdir / "summary.json").read_text())["stages"]
    return stage


def saved(workdir: pathlib.Path) -> dict:
    """The last checkpoint: a digest of every array, and where the run stands."""
    path = workdir / "checkpoints" / "squares" / str(squares.STEPS) / "record" / "record.json"
    content = json.loads(path.read_text())["content"]
    for name in ("seconds", "device_seconds"):
        content["metadata"].pop(name)
    return content


def losses(workdir: pathlib.Path) -> list[tuple]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        (line["step"], line.get("loss"), line.get("holdout/loss"), line.get(f"skipped/{CAUSE}"))
        for line in lines
    ]


def test_a_corrupt_image_is_skipped_counted_and_named(whole, rows):
    workdir, said = whole
    met = [CORRUPT in rows.sample_ids(row) for row in range(squares.STEPS)]
    assert sum(met)
    counts = [(step, skipped) for step, loss, _, skipped in losses(workdir) if loss is not None]
    assert counts == [(step, sum(met[:step]) or None) for step in (2, 4, 6, 8)]
    assert summary(workdir)["steps"] == squares.STEPS and summary(workdir)["skipped"] == {
        CAUSE: sum(met)
    }
    assert summary(workdir)["skip_examples"][CAUSE].startswith(f"{CORRUPT}: ")
    assert f"  {sum(met)} skipped ({CAUSE}: {sum(met)})\n" in said
    assert f"{CAUSE}: {sum(met)}, such as {CORRUPT}" in (workdir / "report.html").read_text()


def test_a_killed_run_ends_the_same_with_another_number_of_workers(
    data, whole, rows, tmp_path, monkeypatch
):
    """The run is held where an image is read after the save of step 4, until it is killed."""
    last = max(row for row in (4, 5) if CORRUPT not in rows.sample_ids(row))
    (name,) = rows.sample_ids(last)
    number = int(name.removeprefix("data.jsonl:")) - 1
    monkeypatch.setenv(held.VARIABLE, "image")
    monkeypatch.setenv("HELD_IMAGE", f"{number}.png")
    child = squares.train(data, tmp_path, config=held.__file__, **BUDGET)
    wait_for(tmp_path / "checkpoints" / "squares" / "4", child)
    child.kill()
    child.communicate()
    monkeypatch.undo()
    assert child.returncode == -signal.SIGKILL and not (tmp_path / "summary.json").exists()
    said = finish(data, tmp_path, data__workers="1")
    assert "going on from step 4 of 8" in said
    assert saved(tmp_path) == saved(whole[0])
    assert losses(tmp_path) == losses(whole[0])
    assert summary(tmp_path)["skipped"] == summary(whole[0])["skipped"]


def wait_for(path: pathlib.Path, child) -> None:
    end = time.monotonic() + LIMIT
    while not path.exists():
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < end, f"there is no {path}"
        time.sleep(0.02)


def test_the_folder_of_another_recipe_stays_as_it_is(data, whole):
    workdir, _ = whole
    before = squares.contents(workdir)
    child = squares.train(data, workdir, **BUDGET, steps="9")
    said, errors = child.communicate(timeout=LIMIT)
    assert (child.returncode, said) == (2, "")
    assert (
        errors.startswith("mmjax: ")
        and "holds a run of another recipe" in errors
        and "Traceback" not in errors
    )
    assert errors.splitlines()[1:] == ["  stages.squares.steps: 8 there, 9 here"]
    assert squares.contents(workdir) == before
