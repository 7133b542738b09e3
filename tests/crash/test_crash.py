"""Real processes, real signals: whatever ends a run, the next one goes on from the last save and ends as if nothing had happened."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.training import toy

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
LIMIT = 300


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toy.write_data(tmp_path_factory.mktemp("data"))


def start(data: pathlib.Path, workdir: pathlib.Path, where: str = "") -> subprocess.Popen:
    command = [sys.executable, "tests/crash/run_toy.py", str(data), str(workdir), where]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(child: subprocess.Popen, marker: str) -> None:
    for line in child.stdout:
        if line.strip() == marker:
            return
    pytest.fail(f"it ended with {child.wait()} before {marker!r}:\n{child.stderr.read()}")


def finish(data: pathlib.Path, workdir: pathlib.Path) -> None:
    child = start(data, workdir)
    _, errors = child.communicate(timeout=LIMIT)
    assert child.returncode == 0, errors


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finish(data, folder)
    return folder


def steps(workdir: pathlib.Path) -> list[int]:
    return sorted(
        int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()
    )


def record(workdir: pathlib.Path) -> dict:
    content = json.loads(
        (workdir / "checkpoints" / str(toy.STEPS) / "record" / "record.json").read_text()
    )["content"]
    for name in ("seconds", "device_seconds"):
        content["metadata"].pop(name)
    return content


def assert_same_end(workdir: pathlib.Path, whole: pathlib.Path) -> None:
    assert record(workdir) == record(whole)
    assert toy.metric_lines(workdir) == toy.metric_lines(whole)
    assert max(steps(workdir)) == max(steps(whole))  # which older one stays depends on the stop
    assert all(path.name.isdecimal() for path in (workdir / "checkpoints").iterdir()), (
        "something else was left"
    )


# Where the signal comes, and the step at which the state is saved, where that is certain.
@pytest.mark.parametrize(
    "number, where, step",
    [
        (signal.SIGTERM, "compile", 1),
        (signal.SIGTERM, "step", None),
        (signal.SIGINT, "step", None),
        (signal.SIGTERM, "evaluation", 3),
        (signal.SIGTERM, "save", None),
    ],
)
def test_a_stop_signal_saves_and_exits_with_75(data, whole, tmp_path, where, step, number):
    child = start(data, tmp_path, where)
    wait_for(child, f"at {where}")
    child.send_signal(number)
    _, errors = child.communicate(timeout=LIMIT)
    assert child.returncode == 75, errors
    assert "training will be saved" in errors and "the state is saved" in errors
    assert f"at step {max(steps(tmp_path))} of stage" in errors
    assert step is None or max(steps(tmp_path)) == step
    if where == "evaluation":
        assert not (tmp_path / "metrics.jsonl").exists(), "the evaluation was not cut short"
    finish(data, tmp_path)
    assert_same_end(tmp_path, whole)


@pytest.mark.parametrize("where", ["write", "publish"])
def test_a_kill_during_an_asynchronous_save_loses_that_save_alone(data, whole, tmp_path, where):
    child = start(data, tmp_path, where)
    wait_for(child, f"at {where}")
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert steps(tmp_path) == [2]
    assert any("tmp" in path.name for path in (tmp_path / "checkpoints").iterdir()), (
        "the save had not begun"
    )
    finish(data, tmp_path)
    assert_same_end(tmp_path, whole)


def test_kills_at_any_moment(data, whole, tmp_path):
    child = start(data, tmp_path)
    begun = time.monotonic()
    child.communicate(timeout=LIMIT)
    lifetime = time.monotonic() - begun
    assert child.returncode == 0
    moments = random.Random(0)
    folder = tmp_path / "killed"
    for _ in range(4):
        child = start(data, folder)
        try:
            # Imports take the first part.
            child.communicate(timeout=lifetime * moments.uniform(0.4, 1.0))
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
    finish(data, folder)
    assert_same_end(folder, whole)
