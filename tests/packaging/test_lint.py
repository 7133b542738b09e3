"""Style and types are part of the tests."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def _run(*arguments: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff_finds_nothing():
    _run("ruff", "check", ".")


def test_the_format_is_ruffs():
    _run("ruff", "format", "--check", ".")


def test_mypy_finds_nothing():
    _run("mypy")
