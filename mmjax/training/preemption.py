"""SIGTERM and Ctrl-C ask for a stop; loops look at `requested` between their steps, save, and raise `Preempted`.

Python runs a signal handler only when the main thread is back in Python, which a long compilation is not. The message is therefore printed by
a thread that the signal wakes through a file descriptor, and a second Ctrl-C, which leaves without saving, works from there too.
"""

import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)
INTERRUPTED_EXIT_CODE = 130


class StopSignal:
    """Context manager that turns the signals into a flag, and gives the old handlers back at its end. For the main thread."""

    def __init__(self) -> None:
        self.requested = False
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._old = {number: signal.signal(number, self._handle) for number in SIGNALS}
        self._old_descriptor = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        signal.set_wakeup_fd(self._old_descriptor)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._writer.close()  # the thread reads the end of the stream
        self._thread.join()
        self._reader.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True

    def _listen(self) -> None:
        stopping = False
        while byte := self._reader.recv(1):
            number = byte[0]
            if number not in SIGNALS:
                continue
            if stopping and number == signal.SIGINT:
                os.write(sys.stderr.fileno(), b"mmjax: leaving at once; nothing more is saved.\n")
                os._exit(INTERRUPTED_EXIT_CODE)
            if not stopping:
                name = signal.Signals(number).name
                text = f"\nmmjax: {name} received; stopping after this step (or compilation), then saving. Ctrl-C again leaves at once.\n"
                os.write(sys.stderr.fileno(), text.encode())
            stopping = self.requested = True
