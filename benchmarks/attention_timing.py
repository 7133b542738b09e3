"""Interleaved rounds: every implementation in turn, again and again, so that what the machine does meanwhile meets all of them alike."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable

MOST_DISPATCHES = 10_000
FEWEST_ROUNDS = 3  # in a shape whose time is up


@dataclasses.dataclass(frozen=True)
class Measured:
    """Work that can be timed.

    Attributes:
        run: does it so many times, one behind the other, and gives the seconds until all of it is done.
        calls: of attention in each of these times.
    """

    run: Callable[[int], float]
    calls: int = 1


class Skipped(Exception):
    """An implementation is not measured at a shape, for the reason that this says."""


class Clock:
    """Shares the time of a benchmark among its shapes: each may use an equal part of what is left when it begins."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic):
        self.now = now
        self.end = now() + seconds
        self.deadline = self.end

    def begin(self, left: int) -> None:
        """Starts one of `left` shapes."""
        self.deadline = self.now() + max(self.end - self.now(), 0) / left

    def is_up(self) -> bool:
        return self.now() >= self.deadline


def dispatches(measured: Measured, target: float) -> int:
    """How many make a sample of `target` seconds; the first runs compile and warm up, and are not looked at."""
    measured.run(1)
    once = max(measured.run(1), 1e-9)
    number = min(max(math.ceil(target / once), 1), MOST_DISPATCHES)
    if number == 1:
        return 1
    each = measured.run(number) / number  # less than `once`, which has waited for the device alone
    return min(max(math.ceil(target / max(each, 1e-9)), 1), MOST_DISPATCHES)


def interleaved(
    work: dict[str, Measured],
    rounds: int,
    target: float,
    clock: Clock,
    beat: Callable[[str], None] = lambda _: None,
) -> dict[str, dict]:
    """Seconds per call of every implementation, round by round.

    Args:
        work: by name; taken in this order in every round.
        rounds: how many, or at least FEWEST_ROUNDS if the clock is up before.
        target: seconds of a sample.
        beat: told what is about to run.

    Returns:
        {name: {"seconds": [...]}}; one that fails has "error" with what it said.
    """
    results: dict[str, dict] = {name: {"seconds": []} for name in work}
    numbers: dict[str, int] = {}
    for name, measured in work.items():
        beat(name)
        attempt(
            results[name],
            lambda name=name, measured=measured: numbers.update(
                {name: dispatches(measured, target)}
            ),
        )
    for done in range(rounds):
        if done >= FEWEST_ROUNDS and clock.is_up():
            break
        for name, number in numbers.items():
            if "error" in results[name]:
                continue
            beat(name)
            measured = work[name]

            def sample(
                name: str = name, number: int = number, measured: Measured = measured
            ) -> None:
                results[name]["seconds"].append(measured.run(number) / (number * measured.calls))

            attempt(results[name], sample)
    return results


def attempt(result: dict, action: Callable[[], object]) -> bool:
    """Does it, or keeps what it says as result["error"]: whatever an opponent raises is a line of the table, and not the end."""
    try:
        action()
    except Exception as error:
        result["error"] = said(error)
        return False
    return True


def said(error: Exception) -> str:
    """One line of an exception."""
    if isinstance(error, Skipped):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, middle, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, middle, third
