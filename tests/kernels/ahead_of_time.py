"""Programs compiled for devices that this machine does not have, in processes of their own.

`make aot` brings the compilers: jax's plugin for GPUs, without the libraries of CUDA, and libtpu. Only the processes here have them on
their path, because jax looks for the devices of whatever it finds.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
REQUIRED = "MMJAX_REQUIRE_AOT"  # set where missing compilers must fail the tests
FOLDER = pathlib.Path(os.environ.get("MMJAX_AOT") or ROOT / ".aot").absolute()
COMPILERS = ("jax_cuda13_plugin", "jax_plugins", "libtpu")
PATIENCE = 500  # seconds; less than a test may take, so that what the process said is seen

missing = [name for name in COMPILERS if not (FOLDER / name).is_dir()]
needed = pytest.mark.skipif(
    bool(missing) and not os.environ.get(REQUIRED),
    reason=f"no compilers for GPUs and TPUs in {FOLDER.name}: `make aot` brings them (set {REQUIRED}=1 to make this an error)",
)


@functools.cache
def _said(script: pathlib.Path, text: str) -> str:
    assert not missing, (
        f"{REQUIRED} is set, and {FOLDER} has no {', '.join(missing)}: `make aot` brings them"
    )
    kept = {
        name: value for name, value in os.environ.items() if name != "XLA_FLAGS"
    }  # compiled as users' programs are
    environment = kept | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, FOLDER)))}
    run = subprocess.run(
        [sys.executable, str(script)],
        input=text,
        capture_output=True,
        text=True,
        env=environment,
        timeout=PATIENCE,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def needs(script: pathlib.Path, *cases: dict) -> list[dict]:
    """What the programs of some cases need, as a script says it line by line; all are compiled in one process."""
    found = [json.loads(line) for line in _said(script, json.dumps(cases)).splitlines()]
    assert len(found) == len(cases), found
    for case in found:
        print(case)
        assert "error" not in case, case
    return found
