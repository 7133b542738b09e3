"""Interrupts that would be lost: in callbacks of the garbage collector, and in the middle of imports."""

import contextlib
import gc
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from mmjax.base.signals import SigtermInterrupt, defer_signals, interruptible, reraise_swallowed


@contextlib.contextmanager
def at_collection(callback: Callable[[], None]) -> Iterator[None]:
    """Runs `callback` once, at the next garbage collection, as part of it."""

    def once(phase: str, information: object) -> None:
        gc.callbacks.remove(once)
        callback()

    gc.callbacks.append(once)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            gc.callbacks.remove(once)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def collect_and_wait() -> None:
    gc.collect()
    time.sleep(10)


def test_ctrl_c_during_a_garbage_collection_is_not_lost():
    with reraise_swallowed(), at_collection(interrupt), pytest.raises(KeyboardInterrupt):
        collect_and_wait()


def test_sigterm_during_a_garbage_collection_is_not_lost():
    with interruptible(), at_collection(terminate), pytest.raises(SigtermInterrupt):
        collect_and_wait()


def test_other_errors_that_nobody_can_catch_are_still_shown(monkeypatch: pytest.MonkeyPatch):
    shown: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lambda ignored: shown.append(ignored.exc_type))
    with reraise_swallowed(), at_collection(lambda: 1 // 0):  # type: ignore[arg-type,return-value]
        gc.collect()
    assert shown == [ZeroDivisionError]


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SigtermInterrupt)]
)
def test_what_is_held_back_comes_at_the_end(number: signal.Signals, expected: type[BaseException]):
    passed = []
    with interruptible(), pytest.raises(expected):
        with defer_signals():
            signal.raise_signal(number)
            passed.append("the rest of the block")
        passed.append("what is behind it")
    assert passed == ["the rest of the block"]


def test_an_error_of_its_own_does_not_swallow_what_is_held_back():
    with pytest.raises(KeyboardInterrupt), defer_signals():
        signal.raise_signal(signal.SIGINT)
        raise ImportError


def test_the_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with interruptible(), defer_signals():
        pass
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
