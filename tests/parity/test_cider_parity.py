"""CIDEr-D of made-up captions: what pycocoevalcap computed (tests/parity/cider.py)."""

import json
import math
import pathlib

import pytest

from mmjax.evaluation.scores import cider_d

CONTENT = json.loads(pathlib.Path(__file__).with_name("cider.json").read_text(encoding="utf-8"))


def test_scores():
    images, expected = CONTENT["images"], CONTENT["scores"]
    ours = cider_d(
        [image["candidate"] for image in images], [image["references"] for image in images]
    )
    assert ours == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert math.fsum(ours) / len(ours) == pytest.approx(CONTENT["mean"])
    assert sum(0.1 < score < 9.9 for score in expected) > len(expected) / 2 and 0.0 in expected


def test_the_reference_says_how_it_was_made():
    assert CONTENT["metadata"].keys() == {"script", "seed", "python", "pycocoevalcap", "numpy"}
    assert (pathlib.Path(__file__).parent / CONTENT["metadata"]["script"]).exists()
