"""Every moment is charged to one cause."""

import pytest

from mmjax.training import metrics
from mmjax.training.metrics import CAUSES, Chrono


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_time_goes_to_the_innermost_cause(clock):
    chrono = Chrono()
    clock(1)
    with chrono.charge("evaluation"):
        clock(2)
        with chrono.charge("save"):
            clock(4)
        clock(8)
    clock(16)
    assert chrono.seconds == dict.fromkeys(CAUSES, 0.0) | {
        "other": 17.0,
        "evaluation": 10.0,
        "save": 4.0,
    }
    assert chrono.total == 31.0


def test_the_cause_may_be_told_in_the_end(clock):
    chrono = Chrono()
    with chrono.charge("input", in_the_end=lambda: "step"):
        clock(3)
    with chrono.charge("input", in_the_end=lambda: "input"):
        clock(4)
    clock(5)
    assert chrono.seconds == dict.fromkeys(CAUSES, 0.0) | {"step": 3.0, "input": 4.0, "other": 5.0}


def test_an_exception_ends_the_charge(clock):
    chrono = Chrono()
    with pytest.raises(ValueError), chrono.charge("input"):
        clock(3)
        raise ValueError
    clock(5)
    assert chrono.seconds["input"] == 3.0 and chrono.seconds["other"] == 5.0


def test_the_totals_of_earlier_processes_count(clock):
    chrono = Chrono({"step": 7.0})
    with chrono.charge("step"):
        clock(1)
    assert chrono.seconds["step"] == 8.0 and chrono.total == 8.0


def test_an_open_charge_is_seen(clock):
    chrono = Chrono()
    with chrono.charge("step"):
        clock(2)
        assert chrono.seconds["step"] == 2.0


def test_device_time_adds_up_over_processes_with_other_devices(clock):
    first = Chrono(devices=4)
    clock(10)
    seconds = first.seconds
    assert first.device_seconds(seconds) == 40.0
    clock(5)  # after the reading
    second = Chrono(seconds, first.device_seconds(seconds), devices=2)
    clock(10)
    assert second.device_seconds(second.seconds) == 60.0
