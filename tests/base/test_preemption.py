"""Signals become a flag, at once, whatever the main thread is busy with."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mmjax.base.signals import StopSignal, reraise_swallowed
from mmjax.errors import ExitCode, Preempted
from tests.base.test_signals import at_collection, collect_and_wait


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


def kill_soon(number: signal.Signals) -> None:
    threading.Timer(0.1, os.kill, (os.getpid(), number)).start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_loses_nothing_is_left_at_once(number, capfd):
    with (
        StopSignal() as stop,
        pytest.raises(Preempted, match="nothing was lost"),
        stop.at_once("nothing was lost"),
    ):
        kill_soon(number)
        time.sleep(30)
    assert f"{number.name}: stopping. Ctrl-C leaves at once." in capfd.readouterr().err


def test_a_signal_that_came_before_is_answered_at_the_beginning():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: stop.requested)
        with pytest.raises(Preempted), stop.at_once("before"):
            pytest.fail("it began")


def test_after_it_a_signal_is_a_flag_again():
    with StopSignal() as stop:
        with stop.at_once("no"):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: stop.requested)


def test_only_the_first_signal_raises_so_that_what_tidies_up_can_end():
    tidied = []
    with StopSignal() as stop, pytest.raises(Preempted), stop.at_once("once"):
        try:
            kill_soon(signal.SIGTERM)
            time.sleep(30)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            tidied.append(None)
    assert tidied


def test_a_keyboard_interrupt_that_is_none_of_a_signal_passes():
    with StopSignal() as stop, pytest.raises(KeyboardInterrupt), stop.at_once("no"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_exception_that_a_callback_swallows_comes_again(number):
    with (
        StopSignal() as stop,
        reraise_swallowed(),
        pytest.raises(Preempted),
        stop.at_once("again"),
        at_collection(lambda: signal.raise_signal(number)),
    ):
        collect_and_wait()


def test_one_inside_another_counts_together():
    with StopSignal() as outer:
        with StopSignal() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: inner.requested)
        assert outer.requested


def test_a_process_that_is_forked_answers_for_itself():
    """Its parent does not take its signals for its own, and it can be ended."""
    with StopSignal() as stop:
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
        time.sleep(0.1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        time.sleep(0.1)
        assert not stop.requested
