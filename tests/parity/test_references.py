"""The recorded files themselves."""

import json
import pathlib

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
NAMES = sorted(path.stem.removeprefix("record_") for path in HERE.glob("record_*.py"))
FILES = [
    name for name in NAMES if not (HERE / "references" / name).is_dir()
]  # the others: test_pretrained_references.py


def test_every_recorder_has_its_reference_and_no_other_is_there():
    assert sorted(path.stem for path in (HERE / "references").iterdir()) == NAMES


@pytest.mark.parametrize("name", FILES)
def test_a_reference_says_how_it_was_made(name):
    path = HERE / "references" / f"{name}.npz"
    assert path.stat().st_size < 300_000
    with np.load(path) as file:
        metadata = json.loads(str(file["metadata"]))
    assert metadata["script"] == f"record_{name}.py"
    assert metadata.keys() >= {"seed", "python", "numpy"}
    assert metadata["torch"].split("+")[0] == "2.13.0" and metadata["transformers"].startswith(
        "5.24."
    )


@pytest.mark.parametrize("name", FILES)
def test_a_recorder_repeats_itself(name, recorded, live):
    """The live reference is the recorded one, to rounding."""
    before, now = recorded(name), live(name)
    assert now.keys() == before.keys()
    for key, value in now.items():
        rounding = max(
            1e-5, 1e-6 * np.abs(before[key]).max(initial=0.0)
        )  # of another processor: a sum of large numbers may be small
        np.testing.assert_allclose(value, before[key], rtol=1e-4, atol=rounding, err_msg=key)
