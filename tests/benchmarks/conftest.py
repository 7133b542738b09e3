"""The scripts of benchmarks/ import each other by their bare names, as they do when one of them is run."""

import os
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))


@pytest.fixture(scope="session")
def oracle_interpreter() -> str:
    """The interpreter that has PyTorch and transformers."""
    interpreter = os.environ.get("MMJAX_ORACLE", str(ROOT / ".oracle/bin/python"))
    if not pathlib.Path(interpreter).exists():
        pytest.skip("no environment with PyTorch (make oracle)")
    return interpreter
