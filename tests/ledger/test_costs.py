"""Savings: the paper's arithmetic, three measures apart, and what of them compares machines."""

import dataclasses

import pytest

from mmjax.ledger import (
    Costs,
    Saving,
    StageCost,
    as_json,
    costs_of_summary,
    reservations,
    saving,
    share_saved,
)
from tests.ledger import runs


@pytest.fixture
def ours() -> Costs:
    return costs_of_summary("ours", runs.grafted())


@pytest.fixture
def baseline() -> Costs:
    return costs_of_summary("baseline", runs.baseline())


def test_the_hours_of_the_paper():
    """arXiv:2505.22664, figure 2: three stages against two; with half of the last one; and its LoRA baseline."""
    full = 7.01 + 27.78
    assert round(100 * share_saved(9.36 + 4.25 + 5.56, full), 1) == 44.9
    assert round(9.36 + 4.25 + 5.56 / 2, 2) == 16.39
    assert round(100 * share_saved(9.36 + 4.25 + 5.56 / 2, full), 1) == 52.9
    assert round(7.01 + 19.17, 2) == 26.18
    assert round(100 * share_saved(26.18, full), 1) == 24.7
    assert round(100 * share_saved(9.36 + 4.25 + 5.56, 26.18), 1) == 26.8


def test_three_measures(ours, baseline):
    found = saving(ours, baseline)
    assert found.seconds == pytest.approx(1 - 19.17 / 34.79)
    assert found.device_seconds == pytest.approx(1 - (8 * 13.61 + 16 * 5.56) / (16 * 34.79))
    assert found.flops == pytest.approx(1 - 8 / 13)


def test_the_stages_before_the_last_may_cost_more(ours, baseline):
    found = saving(ours.before_last, baseline.before_last)
    assert found.seconds == pytest.approx(1 - 13.61 / 7.01) and found.seconds < 0
    assert found.flops == -1.0


def test_what_is_not_known_is_not_counted(ours, baseline):
    unknown = dataclasses.replace(ours, stages=(*ours.stages, StageCost("more", seconds=1.0)))
    assert unknown.total("flops") is None
    assert saving(unknown, baseline) == Saving(
        pytest.approx(1 - (19.17 + 1 / 3600) / 34.79), None, None
    )
    assert saving(
        ours.before_last, dataclasses.replace(baseline, stages=baseline.stages[:1]).before_last
    ) == Saving(None, None, None)


def test_nothing_is_saved_against_oneself(ours):
    assert saving(ours, ours) == Saving(0.0, 0.0, 0.0)
    assert reservations(ours, ours) == []


def test_what_compares_machines(ours, baseline):
    (sentence,) = reservations(ours, baseline)
    assert "numbers of devices differ (ours: 8 and 16 x H100; baseline: 16 x H100)" in sentence
    assert "Device time and FLOPs do not" in sentence
    (sentence,) = reservations(costs_of_summary("ours", runs.grafted(device="TPU v6")), baseline)
    assert "devices differ" in sentence and "FLOPs compare the runs" in sentence
    (sentence,) = reservations(
        dataclasses.replace(baseline, device=None), dataclasses.replace(baseline, device=None)
    )
    assert "not known" in sentence


def test_flops_alone_need_no_reservation():
    counted = Costs("a", (StageCost("a", flops=1.0, devices=1),), "x")
    assert reservations(counted, dataclasses.replace(counted, device="y")) == []


def test_as_plain_data(ours, baseline):
    data = as_json(ours, baseline)
    assert data["saving"]["flops"] == pytest.approx(1 - 8 / 13)
    assert data["saving_before_the_last_stage"]["flops"] == -1.0
    assert data["run"]["total"]["seconds"] == pytest.approx(19.17 * 3600)
    assert [stage["name"] for stage in data["against"]["stages"]] == ["pretrain", "finetune"]
    assert data["run"]["stages"][0]["devices"] == 8 and len(data["reservations"]) == 2
