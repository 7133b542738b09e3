"""Signals become a flag, at once, whatever the main thread is busy with."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mmjax.base.signals import StopSignal
from mmjax.errors import ExitCode


def wait_until(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_flag(number, capfd):
    with StopSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        wait_until(lambda: stop.requested)
    assert signal.Signals(number).name in capfd.readouterr().err


def test_the_old_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopSignal():
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] != before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)


def test_the_handlers_come_back_after_an_exception_and_can_be_taken_again():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError), StopSignal():
        raise ValueError
    assert signal.getsignal(signal.SIGTERM) == before
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: stop.requested)
    assert signal.getsignal(signal.SIGTERM) == before


# The key derivation is one long call into C, as a compilation is: Python's own handlers wait for its end.
BUSY = """
import hashlib
from mmjax.base.signals import StopSignal
with StopSignal() as stop:
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})
    print(f"free, requested: {{stop.requested}}", flush=True)
"""


def start(rounds: int) -> subprocess.Popen:
    child = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(rounds=rounds)],
        env={"PYTHONPATH": "."},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert child.stdout.readline() == "busy\n"
    return child


def test_a_signal_during_a_long_call_is_acknowledged_before_it_ends():
    child = start(rounds=8_000_000)  # a few seconds
    child.send_signal(signal.SIGTERM)
    lines = [line for line in child.stdout if line.strip()]
    assert child.wait(60) == 0
    assert (
        "SIGTERM: stopping after the step or compilation that is under way" in lines[0]
        and lines[1] == "free, requested: True\n"
    )


def test_a_second_interrupt_leaves_at_once():
    child = start(rounds=2_000_000_000)  # longer than the test may take
    child.send_signal(signal.SIGINT)
    while "training will be saved" not in child.stdout.readline():
        pass
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == ExitCode.INTERRUPTED
    assert "leaving at once; nothing more is saved" in child.stdout.read()


def test_a_second_sigterm_changes_nothing():
    child = start(rounds=8_000_000)
    child.send_signal(signal.SIGTERM)
    while "training will be saved" not in child.stdout.readline():
        pass
    child.send_signal(signal.SIGTERM)
    assert "free, requested: True" in child.stdout.read()
    assert child.wait(60) == 0
