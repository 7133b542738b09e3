"""The trajectory of a decoder in the report of a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmjax import report
from mmjax.report.charts import MOST_LINES, drawing, figure
from tests.report.test_report import HOSTILE, Page

TITLE = "Prediction trajectory"


def make_record(samples: int = 30, layers: int = 12, cut: bool = True) -> dict[str, Any]:
    curve = np.minimum(np.linspace(3, 2.8, layers), np.linspace(6, 0, layers))
    curves = curve * np.random.default_rng(0).uniform(0.6, 1.5, (samples, 1))
    found = {
        "layer": 7,
        "replaced_layers": [7, layers - 1],
        "fit": [[0, 3.0], [6, 2.9], [layers - 1, 0.0]],
    }
    return {
        "model": {"weights": "fetched:smollm2"},
        "median": np.median(curves, axis=0).tolist(),
        "samples": curves.tolist(),
        "cut": found if cut else None,
    }


def rendered(workdir: Path, content: str | None) -> Page:
    if content is not None:
        (workdir / "trajectory.json").write_text(content)
    page = Page(report.render(workdir))
    assert not page.open
    return page


def test_a_run_without_one_says_nothing_of_it(workdir: Path) -> None:
    page = rendered(workdir, None)
    assert TITLE not in page.sections
    assert "trajectory" not in page.text


@pytest.mark.parametrize("cut", [True, False])
def test_a_run_with_one_shows_it(workdir: Path, cut: bool) -> None:
    page = rendered(workdir, json.dumps(make_record(cut=cut)))
    assert "fetched:smollm2" in page.sections[TITLE]
    assert ("bends before layer 7" in page.sections[TITLE]) == cut
    assert ("7–10 · late, replaced by one" in page.sections[TITLE]) == cut
    lines = [attributes.get("class") for tag, attributes in page.tags if tag == "g"]
    assert lines.count("line sample") == 2 * 30
    assert lines.count("line fit") == 2 * cut


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"samples": 3}',
        json.dumps(make_record() | {"cut": {"layer": 1}}),
        json.dumps(make_record() | {"median": "x"}),
    ],
)
def test_a_damaged_one_is_named(workdir: Path, content: str) -> None:
    page = rendered(workdir, content)
    assert "trajectory.json" in page.sections[TITLE]
    assert "Loss" in page.sections


def test_hostile_names_stay_text(workdir: Path) -> None:
    page = rendered(workdir, json.dumps(make_record() | {"model": {"weights": HOSTILE}}))
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert "<script>alert(1)</script>" in page.sections[TITLE]


def test_a_bounded_number_of_lines_is_drawn() -> None:
    record = make_record(samples=2 * MOST_LINES + 1)
    assert drawing(record).count("line sample") == MOST_LINES
    assert f"{MOST_LINES} of {2 * MOST_LINES + 1} are drawn" in figure(record)
