"""The wheel builds, holds every module and its data files, and imports in an environment that has never seen the checkout."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    out, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("mmjax", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(out),
        str(source),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = out.glob("mmjax-*.whl")
    return path


def test_the_wheel_holds_every_file_of_the_package(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "mmjax").rglob("*")
        if path.suffix in {".py", ".css", ".html", ".typed"}
    }
    expected |= {f"mmjax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert expected - inside == set()
    assert not any(name.startswith("configs/") for name in inside)


def test_the_wheel_imports_away_from_the_checkout(wheel, tmp_path):
    script = (
        "import sys, importlib, pkgutil; sys.path.insert(0, sys.argv[1]); import mmjax;"
        "assert mmjax.__file__.startswith(sys.argv[1]), mmjax.__file__;"
        "names = [m.name for m in pkgutil.walk_packages(mmjax.__path__, 'mmjax.') if not m.name.endswith('__main__')];"
        "[importlib.import_module(n) for n in names]; print(len(names))"
    )
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "site")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 20


def test_configs_of_the_wheel_are_found_by_name(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    command = [sys.executable, "-m", "mmjax.main", "--config=cos:7b", "--mode=show"]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "resampler" in result.stdout
    (script,) = (tmp_path / "site").glob("*.dist-info/entry_points.txt")
    assert "mmjax = mmjax.main:main" in script.read_text(encoding="utf-8")
