"""Wall time by cause: where the seconds of a stage went. Survives a restart: the totals are saved with the state."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

CAUSES = ("compile", "input", "step", "evaluation", "save", "other")


class Chrono:
    """Charges every moment to exactly one cause; what nothing else claims is "other"."""

    def __init__(self, seconds: Mapping[str, float] | None = None, device_seconds: float | None = None, devices: int = 1):
        """
        Args:
            seconds, device_seconds: totals of earlier processes of the same stage; without the latter, they had as many devices.
            devices: that this process keeps busy.
        """
        self._seconds = dict.fromkeys(CAUSES, 0.0) | dict(seconds or {})
        self.devices = devices
        self._before = sum(self._seconds.values())
        self._device_seconds_before = self._before * devices if device_seconds is None else device_seconds
        self._cause = "other"
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def charge(self, cause: str, *, in_the_end: Callable[[], str] | None = None) -> Iterator[None]:
        """Charges the time inside the context to `cause`; an enclosing cause is paused meanwhile.

        Args:
            in_the_end: the cause after all, asked when the context is left; it must not raise. What was read off before stays where it was.
        """
        assert cause in CAUSES, cause
        outer = self._switch(cause)
        try:
            yield
        finally:
            if in_the_end is not None:
                self._cause = in_the_end()
                assert self._cause in CAUSES, self._cause
            self._switch(outer)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by cause, up to now."""
        self._switch(self._cause)
        return dict(self._seconds)

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def device_seconds(self, seconds: Mapping[str, float]) -> float:
        """Seconds times devices, at a reading of `seconds`. A stage that went on on another number of devices adds up both."""
        return self._device_seconds_before + (sum(seconds.values()) - self._before) * self.devices

    def _switch(self, cause: str) -> str:
        now = time.perf_counter()
        self._seconds[self._cause] += now - self._since
        self._since, outer, self._cause = now, self._cause, cause
        return outer
