"""The packages that mmjax stands on: each is used and explained, and the heavy ones are imported only where they are needed."""

import ast
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from tests import squares

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAMES = [Requirement(text).name for text in PROJECT["dependencies"]]
PAGE = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
MODULES = {"absl-py": "absl", "orbax-checkpoint": "orbax", "pillow": "PIL", "protobuf": "google"}
# Other packages need them, and do not say so, or only for some files.
BEHIND_OTHERS = {"array_record", "importlib_resources", "tiktoken"}


def imported() -> set[str]:
    """The first names of everything that mmjax imports, anywhere."""
    found = set()
    for path in (ROOT / "mmjax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names):
                    found |= {alias.name.partition(".")[0] for alias in names}
                case ast.ImportFrom(module=str(module), level=0):
                    found.add(module.partition(".")[0])
                case ast.Call(
                    func=ast.Attribute(attr="import_module"), args=[ast.Constant(str(name))]
                ):
                    found.add(name.partition(".")[0])
    return found


def test_every_package_is_imported_and_explained():
    used = imported()
    modules = {name: MODULES.get(name, name.replace("-", "_")) for name in NAMES}
    assert {name for name, module in modules.items() if module not in used} == BEHIND_OTHERS
    first_cells = "\n".join(
        line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| ")
    )
    explained = set(re.findall(r"[\w-]+", first_cells))
    assert set(NAMES) - explained - BEHIND_OTHERS == set()
    assert all(name in PAGE for name in BEHIND_OTHERS)


def test_neither_torch_nor_tensorflow_is_imported():
    assert imported() & {"torch", "torchvision", "tensorflow", "keras"} == set()


@pytest.mark.parametrize(
    ("flags", "absent"),
    [
        (["--help"], {"jax", "numpy", "transformers"}),
        (["--config=cos", "--mode=plan"], {"transformers", "tensorflow", "tiktoken"}),
        (["--config=cos", "--mode=show"], {"transformers", "tensorflow"}),
    ],
)
def test_a_command_imports_what_it_needs_alone(tmp_path, flags, absent):
    script = (
        "import sys\nfrom mmjax.main import main\ncode = main(['mmjax', *sys.argv[2:]])\n"
        "print(*sorted(set(sys.argv[1].split(',')) & set(sys.modules)), file=sys.stderr)\nsys.exit(code)"
    )
    command = [sys.executable, "-c", script, ",".join(sorted(absent)), *flags]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "\n")


def test_training_from_scratch_needs_no_transformers(tmp_path):
    data = squares.write_data(tmp_path)
    settings = squares.settings(data) | {"stages.squares.steps": 1, "logging.trackers": ()}
    script = (
        "import sys, mmjax\n"
        f"mmjax.train(mmjax.load_recipe({squares.__file__!r}, {settings!r}), {str(tmp_path / 'run')!r})\n"
        "print({'transformers', 'tensorflow', 'torch'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "set()\n")
