"""SIGTERM and Ctrl-C ask for a stop; loops look at `requested` between their steps, save, and raise `Preempted`.

Python runs a signal handler only when the main thread is back in Python, which a long compilation is not. So a thread that the signal wakes
through a file descriptor sets the flag and prints the message; a second Ctrl-C, which leaves without saving, works from there too.
"""

import os
import signal
import socket
import threading
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)
INTERRUPTED_EXIT_CODE = 130


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
        self._old_descriptor = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._old: dict[signal.Signals, Any] = {number: signal.signal(number, self._handle) for number in SIGNALS}
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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True

    def _listen(self) -> None:
        while byte := self._reader.recv(1):
            number = byte[0]
            if number not in SIGNALS:
                continue
            if self._answered and number == signal.SIGINT:
                _say("leaving at once; nothing more is saved.")
                os._exit(INTERRUPTED_EXIT_CODE)
            if not self._answered:
                name = signal.Signals(number).name
                _say(f"{name}: stopping after the step or compilation that is under way; training will be saved. Ctrl-C leaves at once.")
            self._answered = self.requested = True


def _say(text: str) -> None:
    os.write(2, f"\nmmjax: {text}\n".encode())  # to stderr, past Python's buffers and their locks, which the main thread may hold
