"""A process that hangs ends with code 4 and says where it hung; one that moves is left alone."""

import subprocess
import sys
import threading

from mmjax.base import signals
from mmjax.base.signals import Watchdog
from mmjax.errors import ExitCode

HANG = """
import threading
from mmjax.base.signals import Watchdog

def wait_for_a_batch_that_never_comes():
    threading.Event().wait()

with Watchdog(0.2):
    wait_for_a_batch_that_never_comes()
"""


def run(script: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_hang_ends_the_process_and_shows_where_it_hung():
    ended = run(HANG)
    assert ended.returncode == ExitCode.HANG == 4
    assert "nothing has happened for" in ended.stderr and "logging.hang_timeout" in ended.stderr
    assert "wait_for_a_batch_that_never_comes" in ended.stderr


def test_a_beat_ends_the_silence(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    dog = Watchdog(0.0)
    now[0] += 50.0
    assert dog.silence() == 50.0
    dog.beat()
    assert dog.silence() == 0.0


def test_the_thread_ends_with_the_context():
    with Watchdog(3600.0):
        assert "watchdog" in [thread.name for thread in threading.enumerate()]
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]


def test_zero_watches_nothing():
    with Watchdog(0.0):
        assert "watchdog" not in [thread.name for thread in threading.enumerate()]
