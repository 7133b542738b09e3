"""A hang ends the process: when the loop has not moved for too long, every thread's stack is printed and the process exits with code 4."""

import faulthandler
import os
import sys
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

    def _watch(self) -> None:
        while not self._done.wait(min(self._timeout / 4, 10.0)):
            silent = time.monotonic() - self._last
            if silent > self._timeout:
                print(f"mmjax: nothing has happened for {silent:.0f} s (logging.hang_timeout); the stacks of all threads:", file=sys.stderr)
                faulthandler.dump_traceback(all_threads=True)
                sys.stderr.flush()
                os._exit(HANG_EXIT_CODE)  # the main thread is stuck, so nothing softer would end the process
