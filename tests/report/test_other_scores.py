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
    assert "Other scores" in report.render(workdir)


def test_the_end_of_the_run_has_a_section_of_its_own(workdir):
    (name, last), *_ = reversed(json.loads((workdir / "config.json").read_text())["stages"].items())
    note(workdir, scored(name, last["steps"], 0.9, 1.0))
    assert other_scores.render(reading.read(workdir)) is None


def test_what_is_not_the_score_of_the_run_says_why(workdir):
    config = json.loads((workdir / "config.json").read_text())
    (name, last), *_ = reversed(config["stages"].items())
    whole, partial, other, changed = (
        scored(name, last["steps"], right, 1.0) for right in (0.9, 0.2, 0.3, 0.4)
    )
    partial["eval"]["easy_vqa"]["partial"] = {"images": 20, "of": 1000}
    partial |= {"partial": True, "evaluation": config["evaluation"] | {"limit": 20}}
    other["evaluation"] = config["evaluation"] | {"max_new_tokens": 99, "batch_size": 3}
    changed["changed_data"] = ["captions.jsonl is gone"]
    note(workdir, whole, partial, other, changed)
    shown = str(other_scores.render(reading.read(workdir)))
    assert "90.0 %" not in shown
    for text in (
        "20.0 %",
        "easy vqa: the first 20 of 1,000 images",
        "30.0 %",
        "max new tokens 99",
        "40.0 %",
    ):
        assert text in shown
    assert "the data have changed since" in shown and "batch" not in shown and "limit" not in shown
    # Nor is any of these in the head of the page.
    head = report.render(workdir).split("</header>")[0]
    assert "20.0 %" not in head and "the first 20" not in head


def test_a_run_with_partial_scores_alone_says_so(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    (workdir / "summary.json").write_text(json.dumps(summary | {"eval": {}}))
    assert "not evaluated" in report.render(workdir)
    note(workdir, scored("finetune", 500, 0.2, 1.0) | {"partial": True})
    page = report.render(workdir)
    assert "not evaluated" not in page and "on some of the images only" in page


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
