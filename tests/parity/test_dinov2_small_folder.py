"""The folder that `python -m mmjax.fetch dinov2-small` makes is, to transformers, the network that ONNX Runtime ran."""

import os
import pathlib
import subprocess

import numpy as np
import pytest

from mmjax.errors import InputError
from mmjax.fetch.downloads import fetched

HERE = pathlib.Path(__file__).parent
TOLERANCE = (
    1e-5  # of the largest value of any token: float32 sums in another order, through twelve blocks
)


def test_transformers_computes_what_onnx_runtime_does(recorded, oracle_interpreter, tmp_path):
    try:
        folder = fetched("dinov2-small")
    except InputError as error:
        pytest.skip(str(error))
    reference = recorded("dinov2_small")
    command = [
        oracle_interpreter,
        str(HERE / "run_dinov2.py"),
        str(folder),
        str(HERE / "references" / "dinov2_small.npz"),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [*command, str(tmp_path / "out.npz")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as computed:
        for key in ("hidden:8", "hidden:10", "last"):
            assert (
                np.abs(computed[key] - reference[key]).max()
                <= TOLERANCE * reference[f"largest:{key}"]
            ), key
