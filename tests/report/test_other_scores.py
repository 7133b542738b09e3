"""Scores of other points than the end of a run, and how much of the language model each stage had."""

import json

import pytest

from mmjax import report
from mmjax.report import reading
from mmjax.report.sections import ledger, other_scores


def note(workdir, *records) -> None:
    (workdir / "evaluations.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in records)
    )


def scored(stage: str, step: int, right: float, nll: float) -> dict:
    captions = {"score": 0.25, "metric": "CIDEr-D", "nll": nll, "nll_shuffled": None}
    return {
        "stage": stage,
        "step": step,
        "eval": {"easy_vqa": {"score": right}, "captions": captions},
    }


def test_each_point_has_its_newest_score(workdir):
    note(
        workdir,
        scored("pretrain", 96, 0.1, 9.0),
        scored("finetune", 0, 0.5, 2.5),
        scored("pretrain", 96, 0.6, 3.25),
    )
    shown = str(other_scores.render(reading.read(workdir)))
    assert "60.0 %" in shown and "10.0 %" not in shown and "3.250" in shown and "2.500" in shown
    assert "what it begins with" in shown and "step 96" in shown and "CIDEr-D" in shown
    assert "Scores of other points" in report.render(workdir)


def test_the_end_of_the_run_has_a_section_of_its_own(workdir):
    (name, last), *_ = reversed(json.loads((workdir / "config.json").read_text())["stages"].items())
    note(workdir, scored(name, last["steps"], 0.9, 1.0))
    assert other_scores.render(reading.read(workdir)) is None


def test_without_any_there_is_no_section(workdir):
    assert other_scores.render(reading.read(workdir)) is None
    note(workdir, {"stage": "pretrain", "step": 1, "eval": {}})
    assert other_scores.render(reading.read(workdir)) is None


@pytest.mark.parametrize(("translators", "kept"), [(1, 2), (2, 3)])
def test_a_surrogate_says_how_many_blocks_it_has(workdir, translators, kept):
    config = json.loads((workdir / "config.json").read_text())
    first, *_ = config["stages"]
    assert "blocks of the language model" not in str(ledger.render(reading.read(workdir)))
    config["stages"][first]["model"]["decoder"] |= {
        "layers": 8,
        "replaced_layers": [[1, 8]],
        "translators": translators,
    }
    (workdir / "config.json").write_text(json.dumps(config))
    assert f"{kept} of 8" in str(ledger.render(reading.read(workdir)))
