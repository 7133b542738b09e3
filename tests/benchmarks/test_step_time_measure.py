"""Rounds, budgets and what happens when the sides do not agree, with workers that only pretend."""

import pathlib
import sys
from typing import Any

import pytest
import step_time
import step_time_measure
import step_time_shapes
import step_time_workers
from step_time_measure import FEWEST_ROUNDS, Clock, Settings, measure
from step_time_workers import WorkerError, find_torch

LOSSES, NORMS = [2.0, 1.9, 1.8], [1.0, 0.9, 0.8]


class Machine:
    """A clock that only workers move, and what they were asked."""

    def __init__(self):
        self.time, self.asked = 0.0, []

    def now(self) -> float:
        return self.time


class Pretended:
    """A worker with made-up answers; `slow` seconds go by in each of its turns."""

    def __init__(
        self, machine: Machine, name: str, slow: float = 1.0, fails: str = "", **answer: Any
    ):
        self.machine, self.name, self.slow, self.fails = machine, name, slow, fails
        self.answer = {
            "losses": LOSSES,
            "norms": NORMS,
            "seconds": [9.0, 0.1, 0.1],
            "remark": "",
        } | answer
        self.versions: dict[str, str] = {}
        self.closed = self.killed = False

    def ask(self, seconds: float, **job: Any) -> dict:
        self.machine.asked.append((self.name, job["do"], job["steps"]))
        self.machine.time += min(self.slow, seconds)
        if self.slow > seconds:
            raise TimeoutError("the time was up")
        if self.fails == "interrupted":
            raise KeyboardInterrupt
        if job["do"] == self.fails:
            raise WorkerError("RuntimeError: out of memory")
        return dict(self.answer) if job["do"] == "first" else {"seconds": self.slow, "memory": 5}

    def close(self) -> None:
        self.closed = True

    def kill(self) -> None:
        self.killed = True


@pytest.fixture
def machine() -> Machine:
    return Machine()


def go(
    monkeypatch: pytest.MonkeyPatch,
    machine: Machine,
    workers: dict[str, Pretended],
    seconds: float = 1000.0,
    rounds: int = 5,
) -> dict:
    """The results of a small shape whose workers are these."""
    variants = tuple(name for name in workers if name != "mmjax")
    pretend = lambda *_: dict(workers)  # noqa: E731
    monkeypatch.setattr(step_time_measure, "_start", pretend)
    monkeypatch.setattr(
        step_time_measure.step_time_folder, "write", lambda shape, *_: shape.batches(1)
    )
    clock = Clock(seconds, machine.now)
    clock.begin(1)
    settings = Settings("python", "cpu", variants, rounds, turn=1.0, environment={})
    return measure(step_time_shapes.shape("llm_1b", on_gpu=False), settings, clock, lambda _: None)


def test_workers_take_turns_of_equally_many_steps(
    monkeypatch: pytest.MonkeyPatch, machine: Machine
):
    workers = {name: Pretended(machine, name) for name in ("mmjax", "eager", "compile")}
    result = go(monkeypatch, machine, workers, rounds=3)
    assert machine.asked[:3] == [(name, "first", 3) for name in workers]
    assert machine.asked[3:] == [(name, "run", 10) for _ in range(3) for name in workers], (
        "turns of about a second"
    )
    assert result["workers"]["compile"]["seconds"] == [1.0] * 3 and "failed" not in result
    assert all(worker.closed for worker in workers.values())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"losses": [2.001, 1.9, 1.8]}, "loss of step 1"),
        ({"norms": [1.0002, 0.9, 0.8]}, "gradient norm"),
        ({"losses": [2.0, 1.9, 1.9]}, "step 3"),
    ],
)
def test_sides_that_do_not_agree_are_not_timed(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, change: dict, word: str
):
    workers = {"mmjax": Pretended(machine, "mmjax"), "eager": Pretended(machine, "eager", **change)}
    result = go(monkeypatch, machine, workers)
    assert word in result["failed"] and "torch eager" in result["failed"]
    assert not any(job == "run" for _, job, _ in machine.asked) and all(
        worker.closed for worker in workers.values()
    )


def test_rounding_is_no_disagreement(monkeypatch: pytest.MonkeyPatch, machine: Machine):
    nearly = Pretended(machine, "eager", losses=[2.0001, 1.9, 1.801], norms=[1.00005, 0.5, 0.8])
    assert "failed" not in go(
        monkeypatch, machine, {"mmjax": Pretended(machine, "mmjax"), "eager": nearly}
    )


def test_a_loss_that_is_not_finite_is_a_failure(monkeypatch: pytest.MonkeyPatch, machine: Machine):
    workers = {
        "mmjax": Pretended(machine, "mmjax"),
        "eager": Pretended(machine, "eager", losses=[2.0, float("nan"), 1.8]),
    }
    assert "not finite" in go(monkeypatch, machine, workers)["failed"]


def test_an_opponent_that_fails_is_a_line_and_mmjax_a_failure(
    monkeypatch: pytest.MonkeyPatch, machine: Machine
):
    workers = {
        "mmjax": Pretended(machine, "mmjax"),
        "eager": Pretended(machine, "eager", fails="first"),
        "compile": Pretended(machine, "compile"),
    }
    result = go(monkeypatch, machine, workers)
    assert "failed" not in result and "out of memory" in result["workers"]["eager"]["error"]
    assert len(result["workers"]["compile"]["seconds"]) == 5
    for job in ("first", "run"):
        broken = go(
            monkeypatch,
            machine,
            {"mmjax": Pretended(machine, "mmjax", fails=job), "eager": Pretended(machine, "eager")},
        )
        assert "mmjax: RuntimeError: out of memory" in broken["failed"]


def test_rounds_end_with_the_share_of_a_shape(monkeypatch: pytest.MonkeyPatch, machine: Machine):
    result = go(
        monkeypatch,
        machine,
        {"mmjax": Pretended(machine, "mmjax"), "eager": Pretended(machine, "eager")},
        seconds=9.0,
        rounds=50,
    )
    assert FEWEST_ROUNDS <= len(result["workers"]["eager"]["seconds"]) < 6


def test_a_worker_is_not_waited_for_beyond_the_end(
    monkeypatch: pytest.MonkeyPatch, machine: Machine
):
    workers = {"mmjax": Pretended(machine, "mmjax"), "eager": Pretended(machine, "eager", slow=1e9)}
    result = go(monkeypatch, machine, workers, seconds=30.0)
    assert result["workers"]["eager"]["error"] == "the time was up" and machine.time <= 31.0


def test_an_interrupt_ends_the_workers_at_once(monkeypatch: pytest.MonkeyPatch, machine: Machine):
    workers = {
        "mmjax": Pretended(machine, "mmjax", fails="interrupted"),
        "eager": Pretended(machine, "eager"),
    }
    with pytest.raises(KeyboardInterrupt):
        go(monkeypatch, machine, workers)
    assert all(worker.killed and worker.closed for worker in workers.values())


def test_an_interrupt_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(step_time, "run", interrupted)
    monkeypatch.setattr(step_time_workers, "find_torch", lambda named: "python")
    assert step_time.main(["--shapes", "llm_1b"]) == 130
    assert capsys.readouterr().err == "Interrupted; 0 shapes were done.\n"


@pytest.mark.parametrize("option", ["--rounds", "--turn", "--seconds"])
def test_what_must_be_positive_is_checked(capsys: pytest.CaptureFixture, option: str):
    with pytest.raises(SystemExit) as ended:
        step_time.main([option, "0"])
    assert ended.value.code == 2 and f"{option} must be positive, not 0" in capsys.readouterr().err


def test_a_clock_gives_every_shape_its_share_and_three_at_most(machine: Machine):
    clock = Clock(90.0, machine.now)
    clock.begin(9)
    assert (clock.deadline, clock.hard) == (10.0, 30.0)
    machine.time = 80.0
    clock.begin(1)
    assert (clock.deadline, clock.hard) == (90.0, 90.0) and clock.left() == 10.0
    machine.time = 95.0
    assert clock.is_up() and clock.left() > 0, "a time that has passed is none to wait for"


def test_shapes_that_no_time_is_left_for_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(step_time_workers, "find_torch", lambda _: "python")
    monkeypatch.setattr(step_time_measure, "measure", lambda *_: pytest.fail("nothing is measured"))
    assert step_time.main(["--shapes", "llm_1b", "packed", "--seconds", "1"]) == 0
    assert (
        "Skipped: llm_1b (no time was left); packed (no time was left)." in capsys.readouterr().out
    )


def test_a_failed_shape_ends_with_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: pathlib.Path
):
    failed = {
        "title": "",
        "scaled": {},
        "compared": True,
        "padding": {"mmjax": 0, "torch": 0},
        "failed": "torch eager: the loss is off",
    }
    monkeypatch.setattr(step_time_workers, "find_torch", lambda _: "python")
    monkeypatch.setattr(
        step_time_measure,
        "measure",
        lambda shape, *_: failed | {"name": shape.name, "workers": {"mmjax": {}}},
    )
    assert step_time.main(["--shapes", "llm_1b", "--out", str(tmp_path)]) == 1
    assert "FAILED: llm_1b: torch eager: the loss is off" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"step_time.json", "step_time.md"}, (
        "there is nothing to draw"
    )


def test_without_torch_it_ends_with_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: pathlib.Path
):
    assert step_time.main(["--torch_python", str(tmp_path / "nothing")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "make oracle" in said
    monkeypatch.setenv("MMJAX_ORACLE", str(tmp_path / "nothing"))
    monkeypatch.setattr(step_time_workers, "has_torch", lambda python: python == sys.executable)
    assert find_torch(None) == sys.executable


def test_an_unknown_shape_ends_with_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(step_time_workers, "find_torch", lambda _: "python")
    assert step_time.main(["--shapes", "llm_2b"]) == 2
    assert "llm_2b" in capsys.readouterr().err


def test_a_process_that_ends_or_says_nothing_is_an_error():
    ended = step_time_workers.Worker(
        [sys.executable, "-c", "print('ready {}'); raise SystemExit(3)"], {}
    )
    with pytest.raises(WorkerError, match="ended with 3"):
        ended.ask(60, do="first")
    silent = step_time_workers.Worker(
        [sys.executable, "-c", "import time; print('ready {}', flush=True); time.sleep(600)"], {}
    )
    with pytest.raises(TimeoutError):
        silent.ask(1, do="first")
    assert silent.process.returncode is not None, "it was ended"
