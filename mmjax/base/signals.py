"""Signals and hangs of a process: Ctrl-C and SIGTERM as an end at once, as exceptions or as a flag, and a watchdog.

A command counts signals from its first line (`begin_command`). What the first one does depends on what is under way:

- nothing that could be lost, as while packages are imported: the process ends at once;
- something that is undone by leaving it, as reading data, planning or writing a folder: an exception in the main thread, which is
  `KeyboardInterrupt` or `SigtermInterrupt` (`interruptible`, `reraise_swallowed`, `defer_signals`) or `Preempted` (`StopSignal.at_once`);
- something that is to be saved, as training: a flag (`StopSignal`); loops look at it between their steps, save, and raise `Preempted`.

Two places swallow an exception of a signal: a callback that Python itself calls, as jax has one for every garbage collection, where what
is raised is printed and forgotten; and an import, as some packages take it for a missing dependency. Python runs a signal handler only when
the main thread is back in Python, which a long compilation is not. So a thread that the signal wakes through a file descriptor sets the
flag and prints the message, and a second Ctrl-C, which leaves without saving, works from there too.

A hang ends the process (`Watchdog`): when the loop has not moved for too long, every thread's stack is printed.
"""

import atexit
import contextlib
import enum
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn, Self

from mmjax.errors import ExitCode, Preempted

AGAIN = (
    0.05  # seconds until an interrupt comes again; the callbacks that swallow one take microseconds
)
SIGNALS = (signal.SIGTERM, signal.SIGINT)
ENDED: Mapping[int, ExitCode] = {
    signal.SIGTERM: ExitCode.TERMINATED,
    signal.SIGINT: ExitCode.INTERRUPTED,
}


class SigtermInterrupt(BaseException):
    """SIGTERM, raised where the process is, so that its drafts are removed and its terminal is restored as with Ctrl-C."""


class _Answer(enum.Enum):
    """What the first signal does."""

    LEAVE = enum.auto()  # ends the process
    RAISE = enum.auto()  # KeyboardInterrupt in the main thread
    FLAG = enum.auto()
    PASS = enum.auto()  # whatever handlers say that others have set


class _Counter:
    """Counts the signals of this process: handlers, and a thread that is awake while the main thread is in a long call.

    Attributes:
        answer: what the first one does; the main thread changes it.
        what: what is then said of an exception in the main thread.
        requested: the first that has arrived.
        said: its arrival was acknowledged.
    """

    def __init__(self, answer: _Answer, codes: Mapping[int, ExitCode]):
        """codes: of the process that ends at once, by signal."""
        self.answer, self.codes, self.what = answer, codes, ""
        self.requested: int | None = None
        self.said = threading.Event()
        self._raised = False
        self._answered = False
        self._again = 0  # signals to come that were counted before
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        # Set first: a handler without it would take the signal and leave the thread asleep.
        self._old_descriptor = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._old: dict[signal.Signals, Any] = {
            number: signal.signal(number, self.handle) for number in SIGNALS
        }
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Gives the old handlers back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_descriptor)
        os.close(self._writer)  # the thread reads the end of the stream
        self._thread.join()
        os.close(self._reader)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler, in the main thread."""
        self.requested = self.requested or number
        if self.answer is _Answer.RAISE and not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    def come_again(self) -> None:
        """The exception was lost: it comes again in a moment, and is not counted twice."""
        self._raised, self._again = False, self._again + 1

    def _listen(self) -> None:
        while byte := os.read(self._reader, 1):
            number = byte[0]
            if number not in SIGNALS or self.answer is _Answer.PASS:
                continue
            if self._again and number == signal.SIGINT:
                self._again -= 1
                continue
            name = signal.Signals(number).name
            if self._answered and number == signal.SIGINT:
                _say("leaving at once; nothing more is saved.")
                os._exit(ExitCode.INTERRUPTED)
            if self._answered:
                continue
            if self.answer is _Answer.LEAVE and not self._raised:
                _say(f"{name}: stopped; nothing was under way that had to be saved.")
                os._exit(self.codes[number])
            raises = self._raised or self.answer is _Answer.RAISE
            _say(f"{name}: stopping{self.what if raises else _AFTER}. Ctrl-C leaves at once.")
            self._answered, self.requested = True, self.requested or number
            self.said.set()


_SAVES = "; training will be saved"
_AFTER = f" after the step or compilation that is under way{_SAVES}"
_counter: _Counter | None = None
_is_command = False  # whether signals are counted to the end of the process


def begin_command(first: ExitCode | None = None) -> None:
    """Counts signals from here to the end of this process, which is a command. For its very first line; another call changes nothing.

    Args:
        first: exit code of a process that the first signal ends; None: 143 after SIGTERM and 130 after Ctrl-C.
    """
    global _counter, _is_command
    if _counter is None:
        codes = ENDED if first is None else {int(number): first for number in SIGNALS}
        _counter, _is_command = _Counter(_Answer.LEAVE, codes), True
        # After all else that runs at the exit: the interpreter then gives up its handlers, though it has much left to tidy up.
        atexit.register(_ignore)


def begin_module(arguments: Sequence[str]) -> None:
    """`begin_command` for the command line of an interpreter, `python -m mmjax...`: the first signal to a run gives 75. Others are no
    commands of this package, and nothing happens."""
    name = next((one for one in arguments[1:] if one.partition(".")[0] == "mmjax"), None)
    if name is not None:
        begin_command(ExitCode.PREEMPTED if name in ("mmjax", "mmjax.main") else None)


def end_command(code: ExitCode) -> ExitCode:
    """To be called when a command has done what it could: after a signal, the process ends here, as threads that wait for data would
    hold it. Otherwise, and where no command was begun, the code is returned."""
    if not _is_command or _counter is None or _counter.requested is None:
        return code
    if _counter.answer is not _Answer.PASS:
        _counter.said.wait(1.0)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(_counter.codes[_counter.requested] if code == ExitCode.DONE else code)


def code_of(number: signal.Signals) -> ExitCode:
    """The exit code of this process if such a signal ends it."""
    return ENDED[number] if _counter is None else _counter.codes[number]


def _ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _forget() -> None:
    """In a process that was forked: signals to it are none to its parent, whose file descriptor it has."""
    global _counter, _is_command
    if _counter is not None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _counter, _is_command = None, False


os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def reraise_swallowed() -> Iterator[None]:
    """While it lasts, an interrupt that was raised where nobody can catch it comes again a moment later. For the main thread."""
    before = sys.unraisablehook
    signals = {KeyboardInterrupt: signal.SIGINT, SigtermInterrupt: signal.SIGTERM}

    def again(ignored: "sys.UnraisableHookArgs") -> None:
        number = signals.get(ignored.exc_type)
        if number is None:
            before(ignored)
            return
        if _counter is not None and _counter.answer is not _Answer.PASS:
            _counter.come_again()
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
    """While it lasts, SIGTERM raises `SigtermInterrupt`, and neither it nor Ctrl-C is lost. For the main thread."""

    def terminate(*_: object) -> NoReturn:
        raise SigtermInterrupt

    before = {number: signal.getsignal(number) for number in SIGNALS}
    answer, counter = _Answer.PASS, _counter
    if counter is not None:
        counter.answer, answer = answer, counter.answer
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, terminate)
    try:
        with reraise_swallowed():
            yield
    except (KeyboardInterrupt, SigtermInterrupt):
        answer = _Answer.PASS  # it was the first; the thread may not have seen it yet
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if counter is not None:
            counter.answer = answer


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
    """Context manager that turns the signals into a flag. For the main thread.

    In a command (`begin_command`) it only says what the next signal does; elsewhere, it gives the old handlers back at its end.
    """

    def __init__(self) -> None:
        self._counter: _Counter | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self._counter is not None and self._counter.requested is not None

    def __enter__(self) -> Self:
        global _counter
        self._owns = _counter is None
        self._counter = _counter = _counter or _Counter(_Answer.FLAG, ENDED)
        self._before, self._counter.answer = self._counter.answer, _Answer.FLAG
        return self

    def __exit__(self, *exception: object) -> None:
        global _counter
        assert self._counter is not None
        self._counter.answer = self._before
        if self._owns:
            self._counter.close()
            _counter = None

    @contextlib.contextmanager
    def at_once(self, message: str, *, saves: bool = False) -> Iterator[None]:
        """While it lasts, a signal is answered wherever the main thread is: for what loses nothing if it is left.

        Args:
            saves: whoever catches the exception will save training.

        Raises:
            Preempted: with the message, if one arrives, or has arrived before.
        """
        counter = self._counter
        assert counter is not None
        before = counter.answer
        try:
            try:
                counter.what = _SAVES if saves else ""
                counter.answer = _Answer.RAISE
                if self.requested:
                    raise KeyboardInterrupt
                yield
            finally:
                counter.answer = before
        except KeyboardInterrupt:
            if not self.requested:
                raise
            raise Preempted(message) from None


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
