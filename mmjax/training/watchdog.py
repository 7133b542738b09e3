"""A hang ends the process: when the loop has not moved for too long, every thread's stack is printed and the process exits with code 4."""

import faulthandler
import os
import threading
import time
from typing import Self

HANG_EXIT_CODE = 4


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
                os.write(2, text.encode())  # past Python's buffers, whose locks a stuck thread may hold
                faulthandler.dump_traceback(file=2, all_threads=True)
                os._exit(HANG_EXIT_CODE)  # the main thread is stuck, so nothing softer would end the process
