"""Signals and hangs of a process: Ctrl-C and SIGTERM as exceptions or as a flag, and a watchdog.

As exceptions (`interruptible`, `reraise_swallowed`, `defer_signals`), in the main thread of a command, wherever it is. Two places swallow
such an exception: a callback that Python itself calls, as jax has one for every garbage collection, where what is raised is printed and
forgotten; and an import, as some packages take it for a missing dependency.

As a flag (`StopSignal`): loops look at `requested` between their steps, save, and raise `Preempted`. Python runs a signal handler only when
the main thread is back in Python, which a long compilation is not. So a thread that the signal wakes through a file descriptor sets the
flag and prints the message; a second Ctrl-C, which leaves without saving, works from there too.

A hang ends the process (`Watchdog`): when the loop has not moved for too long, every thread's stack is printed.
"""

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn, Self

from mmjax.errors import ExitCode

AGAIN = (
    0.05  # seconds until an interrupt comes again; the callbacks that swallow one take microseconds
)
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SigtermInterrupt(BaseException):
    """SIGTERM, raised where the process is, so that its drafts are removed and its terminal is restored as with Ctrl-C."""


@contextlib.contextmanager
def reraise_swallowed() -> Iterator[None]:
    """While it lasts, an interrupt that was raised where nobody can catch it comes again a moment later. For the main thread."""
    before = sys.unraisablehook
    signals = {KeyboardInterrupt: signal.SIGINT, SigtermInterrupt: signal.SIGTERM}

    def again(ignored: "sys.UnraisableHookArgs") -> None:
        number = signals.get(ignored.exc_type)
        if number is None:
            before(ignored)
        else:
            timer = threading.Timer(
                AGAIN, signal.pthread_kill, (threading.main_thread().ident, number)
            )
            timer.daemon = True
            timer.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While it lasts, SIGTERM raises `SigtermInterrupt`, and neither it nor Ctrl-C is lost. For the main thread."""

    def terminate(*_: object) -> NoReturn:
        raise SigtermInterrupt

    handler = signal.signal(signal.SIGTERM, terminate)
    try:
        with reraise_swallowed():
            yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM come at the end of it, instead of in the middle of an import. For the main thread."""
    arrived: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: arrived.append(number))
        for number in SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


class StopSignal:
    """Context manager that turns the signals into a flag, and gives the old handlers back at its end. For the main thread.

    Attributes:
        requested: a signal has arrived.
    """

    def __init__(self) -> None:
        self.requested = False
        self._answered = False

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        # Set first: a handler without it would take the signal and leave the thread asleep.
        self._old_descriptor = signal.set_wakeup_fd(
            self._writer.fileno(), warn_on_full_buffer=False
        )

        def request(number: int, frame: FrameType | None) -> None:
            self.requested = True

        self._old: dict[signal.Signals, Any] = {
            number: signal.signal(number, request) for number in SIGNALS
        }
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_descriptor)
        self._writer.close()  # the thread reads the end of the stream
        self._thread.join()
        self._reader.close()

    def _listen(self) -> None:
        while byte := self._reader.recv(1):
            number = byte[0]
            if number not in SIGNALS:
                continue
            if self._answered and number == signal.SIGINT:
                _say("leaving at once; nothing more is saved.")
                os._exit(ExitCode.INTERRUPTED)
            if not self._answered:
                name = signal.Signals(number).name
                _say(
                    f"{name}: stopping after the step or compilation that is under way; training will be saved. Ctrl-C leaves at once."
                )
            self._answered = self.requested = True


def _say(text: str) -> None:
    # To stderr, past Python's buffers and their locks, which the main thread may hold.
    os.write(2, f"\nmmjax: {text}\n".encode())


class Watchdog:
    """Watches a loop that calls `beat` at every step.

    Args:
        timeout: seconds without a beat that count as a hang; 0: no watching.
    """

    def __init__(self, timeout: float):
        self._timeout = timeout
        self._last = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """The loop is alive."""
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        self.beat()
        if self._timeout > 0:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def silence(self) -> float:
        """Seconds since the last beat."""
        return time.monotonic() - self._last

    def _watch(self) -> None:
        while not self._done.wait(min(self._timeout / 4, 10.0)):
            if self.silence() > self._timeout:
                text = f"\nmmjax: nothing has happened for {self.silence():.0f} s (logging.hang_timeout); the stacks of all threads:\n"
                # Past Python's buffers, whose locks a stuck thread may hold.
                os.write(2, text.encode())
                faulthandler.dump_traceback(file=2, all_threads=True)
                # The main thread is stuck, so nothing softer would end the process.
                os._exit(ExitCode.HANG)
