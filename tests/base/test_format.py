"""Numbers in words."""

import pytest

from mmjax.base import format


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0 s"),
        (9.96, "10.0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (312, "5 min 12 s"),
        (3599.9, "1 h 0 min"),
        (90061, "25 h 1 min"),
    ],
)
def test_durations(value: float, text: str) -> None:
    assert format.duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.00 FLOP"), (999.4, "999 FLOP"), (999_600, "1.00 MFLOP"), (1.234e15, "1.23 PFLOP")],
)
def test_operations(value: float, text: str) -> None:
    assert format.operations(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "100.0 %"),
        (0.99999, "> 99.9 %"),
        (0.0, "0.0 %"),
        (0.0001, "< 0.1 %"),
        (0.9814, "98.1 %"),
        (1.04, "104.0 %"),
    ],
)
def test_percentages_are_never_rounded_to_all_or_none(share: float, text: str) -> None:
    assert format.percent(share) == text


def test_counts() -> None:
    assert format.count(24000) == "24,000"
    assert (format.plural(1, "query", "queries"), format.plural(2, "query", "queries")) == (
        "1 query",
        "2 queries",
    )


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.449, "44.9 %"), (-0.2, "-20.0 %"), (-0.0001, "0.0 %"), (0.0, "0.0 %"), (-1.0, "-100.0 %")],
)
def test_what_may_be_less_than_nothing(share: float, text: str) -> None:
    assert format.signed_percent(share) == text


def test_hours_and_quantities() -> None:
    assert [format.hours(value) for value in (12, 3599, 3600, 69_012)] == [
        "12 s",
        "59 min 59 s",
        "1.00 h",
        "19.17 h",
    ]
    assert [format.quantity(value) for value in (24_000, 999_999, 4e8, 1.2e9)] == [
        "24,000",
        "999,999",
        "400 M",
        "1.20 G",
    ]
