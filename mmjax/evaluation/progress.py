"""How far scoring is, as training says it: on a terminal a bar with the time that is left, elsewhere a line every few seconds."""

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mmjax.training.logging import print_line

SECONDS = 5.0  # between two lines


class ScoringProgress:
    """Shows the parts of scoring, one after the other.

    Args:
        console: None: nothing is shown.
        clock: seconds, from any moment on.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic):
        self._console, self._clock = console, clock

    @contextlib.contextmanager
    def part(self, what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """One part, such as the answers to `total` questions (`unit`). Yields what is told after each batch how many more are done."""
        if self._console is None:
            yield lambda _: None
        elif self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self._console, transient=True) as bar:
                task = bar.add_task(what, total=total)
                yield lambda more: bar.advance(task, more)
        else:
            print_line(self._console, f"{what}: {total:,} {unit}; the first batch is compiled ...")
            yield _Lines(
                self._console, self._clock, f"{what}: {{done:,}} of {total:,} {unit}", total
            )


class _Lines:
    """Prints what is done, and the time that is left, when the last line is some seconds old. Speed is measured after the first batch."""

    def __init__(self, console: Console, clock: Callable[[], float], text: str, total: int):
        self._console, self._clock, self._text, self._total = console, clock, text, total
        self._done = self._first = 0
        self._start = self._last = clock()

    def __call__(self, more: int) -> None:
        now = self._clock()
        if not self._done:
            self._start, self._first = now, more
        self._done += more
        if now - self._last < SECONDS and self._done < self._total:
            return
        left, since = "", self._done - self._first
        if since and self._done < self._total:
            seconds = (now - self._start) / since * (self._total - self._done)
            left = f"  {datetime.timedelta(seconds=round(seconds))} left"
        print_line(self._console, self._text.format(done=self._done) + left)
        self._last = now
