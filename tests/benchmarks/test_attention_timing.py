"""Rounds, samples and time budgets, with a clock that only moves when something runs."""

import pytest
from attention_timing import (
    FEWEST_ROUNDS,
    Clock,
    Measured,
    Skipped,
    attempt,
    dispatches,
    interleaved,
    quartiles,
)


class Machine:
    """Work that takes time on its own clock."""

    def __init__(self):
        self.time, self.order = 0.0, []

    def work(
        self,
        name: str,
        seconds: float,
        calls: int = 1,
        overhead: float = 0.0,
        fails_after: float = float("inf"),
    ) -> Measured:
        def run(number: int) -> float:
            if self.time >= fails_after:
                raise RuntimeError("out of memory\nand more")
            self.order.append((name, number))
            self.time += seconds * number + overhead
            return seconds * number + overhead

        return Measured(run, calls)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_a_sample_is_long_enough(machine: Machine):
    number = dispatches(machine.work("a", 0.001, overhead=0.009), target=0.5)
    # A single run says 0.01 s; the 50 after it take 0.059 s, so that there must be more.
    assert number * 0.001 >= 0.4


def test_long_work_runs_once(machine: Machine):
    assert dispatches(machine.work("a", 3.0), target=0.5) == 1


def test_rounds_are_interleaved(machine: Machine):
    work = {name: machine.work(name, 1.0) for name in "abc"}
    interleaved(work, 3, 0.5, Clock(1e9, lambda: machine.time))
    assert [name for name, _ in machine.order[-9:]] == [*"abcabcabc"]


def test_seconds_are_those_of_one_call(machine: Machine):
    results = interleaved(
        {"a": machine.work("a", 0.8, calls=4)}, 5, 4.0, Clock(1e9, lambda: machine.time)
    )
    assert results["a"]["seconds"] == pytest.approx([0.2] * 5)


def test_one_that_fails_midway_keeps_its_rounds_and_the_others_go_on(machine: Machine):
    work = {"a": machine.work("a", 1.0), "b": machine.work("b", 1.0, fails_after=7.5)}
    results = interleaved(work, 5, 0.5, Clock(1e9, lambda: machine.time))
    assert len(results["a"]["seconds"]) == 5 and "error" not in results["a"]
    assert (
        len(results["b"]["seconds"]) == 2 and results["b"]["error"] == "RuntimeError: out of memory"
    )


def test_one_that_cannot_start_is_a_line(machine: Machine):
    results = interleaved(
        {"a": machine.work("a", 1.0, fails_after=0)}, 5, 0.5, Clock(1e9, lambda: machine.time)
    )
    assert results == {"a": {"seconds": [], "error": "RuntimeError: out of memory"}}


def test_rounds_end_with_the_time_but_not_before_the_fewest(machine: Machine):
    clock = Clock(10.0, lambda: machine.time)
    # Two to warm up.
    assert len(interleaved({"a": machine.work("a", 1.0)}, 50, 0.5, clock)["a"]["seconds"]) == 8
    assert clock.is_up()
    assert (
        len(interleaved({"a": machine.work("a", 1.0)}, 50, 0.5, clock)["a"]["seconds"])
        == FEWEST_ROUNDS
    )


def test_every_shape_has_a_share_of_what_is_left(machine: Machine):
    clock = Clock(100.0, lambda: machine.time)
    clock.begin(4)
    assert clock.deadline == 25.0
    machine.time = 10.0  # the first was quick: the others have more
    clock.begin(3)
    assert clock.deadline == 40.0
    machine.time = 120.0
    clock.begin(2)
    assert clock.is_up()


def test_quartiles():
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == (2.0, 3.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_what_an_error_says_is_one_line():
    def fail(error: Exception):
        raise error

    results = [{} for _ in range(3)]
    errors = Skipped("it takes no mask"), ValueError("first\nsecond"), KeyError()
    assert not any(
        attempt(result, lambda error=error: fail(error))
        for result, error in zip(results, errors, strict=True)
    )
    assert [result["error"] for result in results] == [
        "it takes no mask",
        "ValueError: first",
        "KeyError",
    ]
