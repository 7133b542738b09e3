"""Signals to real commands at any moment of their lives: each ends as docs/running.md says, soon, and the next start goes on."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests import squares
from tests.crash import held

LIMIT = 300
SOON = 20.0  # seconds; a tenth of it on an idle machine
COMMANDS = ("chat", "fetch", "graft", "ledger", "port", "report", "trajectory")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    return squares.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    finish(data, workdir)
    return workdir


def start(data: pathlib.Path, workdir: pathlib.Path, *flags: str, at: str = "") -> subprocess.Popen:
    """`python -m mmjax.main`, held at a moment."""
    given = [f"--config.{name}={value}" for name, value in squares.settings(data).items()]
    command = ["-m", "mmjax.main", f"--config={held.__file__}", *given, f"--workdir={workdir}"]
    return python(*command, *flags, environment={held.VARIABLE: at})


def python(*arguments: str, environment: dict[str, str]) -> subprocess.Popen:
    paths = (environment.get("PYTHONPATH"), str(squares.ROOT), os.environ.get("PYTHONPATH"))
    path = os.pathsep.join(filter(None, paths))
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | environment | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(child: subprocess.Popen, marker: str) -> None:
    for line in child.stdout:
        if line.strip() == marker:
            return
    pytest.fail(f"it ended with {child.wait()} before {marker!r}:\n{child.stderr.read()}")


def stop(child: subprocess.Popen, number: signal.Signals) -> str:
    """Sends the signal, and returns what the process then says on stderr, without empty lines."""
    child.send_signal(number)
    begun = time.monotonic()
    _, errors = child.communicate(timeout=LIMIT)
    assert time.monotonic() - begun < SOON, errors
    assert "Traceback" not in errors, errors
    return "\n".join(line for line in errors.splitlines() if line)


def finish(data: pathlib.Path, workdir: pathlib.Path, *flags: str, at: str = "") -> str:
    child = start(data, workdir, *flags, at=at)
    said, errors = child.communicate(timeout=LIMIT)
    assert child.returncode == 0, errors
    return said + errors


def hanging_package(folder: pathlib.Path, name: str) -> dict[str, str]:
    """An environment in which the import of a package says so and never ends."""
    (folder / name).mkdir()
    code = "import time; print('importing', flush=True); time.sleep(120)"
    (folder / name / "__init__.py").write_text(code)
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("package", ["absl", "jax"])
def test_a_run_that_is_still_importing_ends_with_75(tmp_path, package, number):
    environment = hanging_package(tmp_path, package)
    config = f"--config={squares.__file__}"
    child = python("-m", "mmjax.main", config, environment=environment)
    wait_for(child, "importing")
    said = stop(child, number)
    assert child.returncode == 75
    assert said == f"mmjax: {number.name}: stopped; nothing was under way that had to be saved."


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("command", COMMANDS)
def test_other_commands_that_are_still_importing_end_with_143_or_130(
    tmp_path, command, number, code
):
    packages = {"chat": "argparse", "report": "numpy", "trajectory": "argparse"}
    environment = hanging_package(tmp_path, packages.get(command, "rich"))
    child = python("-m", f"mmjax.{command}", "x", environment=environment)
    wait_for(child, "importing")
    assert "nothing was under way" in stop(child, number)
    assert child.returncode == code


def test_the_script_counts_signals_too(tmp_path):
    environment = hanging_package(tmp_path, "absl")
    code = "import sys; sys.argv = ['/bin/mmjax', '--help']; from mmjax.main import main; sys.exit(main())"
    child = python("-c", code, environment=environment)
    wait_for(child, "importing")
    stop(child, signal.SIGTERM)
    assert child.returncode == 75


def test_to_import_the_package_changes_no_handler(tmp_path):
    code = (
        "import signal, mmjax, mmjax.main\n"
        "print(signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT).__name__)"
    )
    child = python("-c", code, environment={})
    assert child.communicate()[0] == "0 default_int_handler\n"


# What the process says, and what is then in the workdir.
MOMENTS = {
    "config": ("nothing was under way", None),
    "claim": ("Stopped before the run began", {".lock"}),
    "planning": ("Stopped before stage 'squares'", {".lock", "config.json", "tokenizer.json"}),
    "data": ("the state is saved", {"checkpoints", "config.json"}),
    "scoring": ("Stopped while scoring", {"checkpoints", "summary.json"}),
    "exit": ("nothing was under way", {"checkpoints", "summary.json", "report.html"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", MOMENTS)
def test_a_run_ends_with_75_at_any_moment_and_goes_on(data, tmp_path, at, number):
    message, left = MOMENTS[at]
    child = start(data, tmp_path / "run", at=at)
    wait_for(child, f"at {at}")
    said = stop(child, number)
    assert child.returncode == 75
    assert message in said
    assert len(said.splitlines()) <= 2, said
    if left is None:
        assert not (tmp_path / "run").exists()
    else:
        assert left <= {path.name for path in (tmp_path / "run").iterdir()}
    finish(data, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("mode", ["evaluate", "generate"])
def test_other_modes_end_with_75_while_they_read_the_model(data, trained, mode, number):
    before = squares.contents(trained)
    question = ("--prompt=what?",) if mode == "generate" else ()
    child = start(data, trained, f"--mode={mode}", *question, at="loading")
    wait_for(child, "at loading")
    assert "mmjax: Stopped while" in stop(child, number)
    assert child.returncode == 75
    changed = {
        path
        for path, content in squares.contents(trained).items()
        if before.get(path, (0, b""))[1] != content[1]
    }
    assert not changed


@pytest.mark.slow
def test_a_second_ctrl_c_ends_what_the_first_cannot(data, tmp_path):
    child = start(data, tmp_path / "run", at="stuck")
    wait_for(child, "at stuck")
    child.send_signal(signal.SIGINT)
    wait_for(child, "lost")
    assert "leaving at once; nothing more is saved" in stop(child, signal.SIGINT)
    assert child.returncode == 130


@pytest.mark.slow
@pytest.mark.parametrize("at", ["claim", "planning"])
def test_a_kill_before_the_first_step_leaves_a_folder_that_can_be_used(data, tmp_path, at):
    child = start(data, tmp_path / "run", at=at)
    wait_for(child, f"at {at}")
    child.kill()
    child.communicate()
    finish(data, tmp_path / "run")


@pytest.mark.slow
def test_the_second_of_two_runs_that_start_together_is_told_so(data, tmp_path):
    first = start(data, tmp_path / "run", at="claim")
    wait_for(first, "at claim")
    second = start(data, tmp_path / "run")
    _, errors = second.communicate(timeout=LIMIT)
    assert second.returncode == 2
    assert errors == f"mmjax: Another process is running in the workdir {tmp_path / 'run'}.\n"
    stop(first, signal.SIGTERM)
    finish(data, tmp_path / "run")


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_one_message(data, tmp_path):
    child = start(data, tmp_path / "run", "--config.logging.trackers=()", at="full")
    _, errors = child.communicate(timeout=LIMIT)
    assert child.returncode == 2 and "Traceback" not in errors, errors
    assert "cannot be" in errors and "File too large" in errors
    assert len(errors.splitlines()) < 12, errors


@pytest.mark.slow
def test_a_save_that_fails_is_made_up_for_by_the_next(data, tmp_path):
    said = finish(data, tmp_path / "run", "--config.logging.trackers=()", at="full for a while")
    assert said.count("was not saved") == 1 and "Traceback" not in said, said
    steps = {path.name for path in (tmp_path / "run" / "checkpoints" / "squares").iterdir()}
    assert str(squares.STEPS) in steps and all(name.isdecimal() for name in steps)
