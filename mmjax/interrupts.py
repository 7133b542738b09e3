"""Ctrl-C and SIGTERM as exceptions in the main thread of a command, wherever it is.

Two places swallow such an exception. A callback that Python itself calls, as jax has one for every garbage collection: what is raised there
is printed and forgotten. And an import: some packages take it for a missing dependency.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

AGAIN = 0.05  # seconds; such a callback takes microseconds


class Terminated(BaseException):
    """SIGTERM: raised where the process is, so that its drafts go and its terminal is left as with Ctrl-C."""


def terminate(*_: object) -> NoReturn:
    """A handler for SIGTERM."""
    raise Terminated


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """While it lasts, an interrupt that was raised where nobody can catch it comes again a moment later. For the main thread."""
    before = sys.unraisablehook
    signals = {KeyboardInterrupt: signal.SIGINT, Terminated: signal.SIGTERM}

    def again(ignored: "sys.UnraisableHookArgs") -> None:
        number = signals.get(ignored.exc_type)
        if number is None:
            before(ignored)
        else:
            timer = threading.Timer(AGAIN, signal.pthread_kill, (threading.main_thread().ident, number))
            timer.daemon = True
            timer.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While it lasts, SIGTERM raises `Terminated`, and neither it nor Ctrl-C is lost. For the main thread."""
    handler = signal.signal(signal.SIGTERM, terminate)
    try:
        with heard():
            yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM come at the end of it, instead of in the middle of an import. For the main thread."""
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
