"""The recorded checkpoints themselves."""

import json
import os
import pathlib
import subprocess

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
FOLDER = HERE / "references" / "pretrained"
RECORDED = sorted(path.relative_to(FOLDER) for path in FOLDER.rglob("*") if path.is_file())


def test_they_are_small():
    assert sum((FOLDER / path).stat().st_size for path in RECORDED) < 2_500_000


@pytest.mark.parametrize(
    "name", [path.parent.name for path in RECORDED if path.name == "recorded.npz"]
)
def test_a_case_says_how_it_was_made(name):
    with np.load(FOLDER / name / "recorded.npz") as file:
        metadata = json.loads(str(file["metadata"]))
    assert metadata["script"] == "record_pretrained.py" and metadata["seed"]
    assert metadata["torch"].split("+")[0] == "2.13.0" and metadata["transformers"].startswith(
        "5.24."
    )


@pytest.mark.slow
def test_the_recorder_repeats_itself(oracle_interpreter, tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    command = [oracle_interpreter, str(HERE / "record_pretrained.py"), str(tmp_path / "pretrained")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr

    assert (
        sorted(
            path.relative_to(tmp_path / "pretrained")
            for path in (tmp_path / "pretrained").rglob("*")
            if path.is_file()
        )
        == RECORDED
    )
    for path in RECORDED:
        if path.suffix != ".npz":
            assert (tmp_path / "pretrained" / path).read_bytes() == (FOLDER / path).read_bytes(), (
                path
            )
            continue
        with np.load(tmp_path / "pretrained" / path) as now, np.load(FOLDER / path) as before:
            assert now.files == before.files
            for key in set(before.files) - {"metadata"}:
                np.testing.assert_allclose(
                    now[key], before[key], rtol=1e-4, atol=1e-5, err_msg=f"{path}: {key}"
                )
