"""The shapes of a GPU need nothing of mmjax's dependencies but jax, flax, optax and orbax."""

import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp

ROOT = pathlib.Path(__file__).parents[2]
ABSENT = (
    "grain",
    "ml_collections",
    "tensorflow_datasets",
    "array_record",
    "tensorboardX",
    "easy_vqa",
)
BLOCKED = """
import importlib.abc, json, pathlib, sys, tempfile

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

ABSENT = json.loads(sys.argv[1])
sys.meta_path.insert(0, Blocked())
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/benchmarks"]
import step_time_jax, step_time_chart, step_time_folder, step_time_measure, step_time_shapes, step_time_table
from mmjax.models.config import DecoderConfig
from step_time_stages import language_stage

for name in step_time_shapes.names(on_gpu=True):
    assert step_time_shapes.shape(name, on_gpu=True).title
step_time_folder.spec(step_time_shapes.shape("surrogate", on_gpu=True).stage)
tiny = DecoderConfig(vocabulary=32, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=16)
stage = language_stage("tiny", tiny, 8, 2, full=True)
shape = step_time_shapes.Shape("tiny", stage, step_time_shapes.made.maker("tiny", stage), compared=False)
with tempfile.TemporaryDirectory() as folder:
    described = step_time_measure.describe(shape, step_time_folder.write(shape, pathlib.Path(folder)))
    job = step_time_jax.Job(pathlib.Path(folder))
    first = job.first("mmjax", 3)
    print(json.dumps({"first": first, "run": job.run("mmjax", 2), "flops": described["flops"]}))
"""


def test_shapes_of_a_gpu_run_without_what_a_gpu_machine_has_not():
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", BLOCKED, json.dumps(ABSENT), str(ROOT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    losses = found["first"]["losses"]
    assert losses[2] != losses[0] and abs(losses[0] - jnp.log(32)) < 1
    assert found["run"]["seconds"] > 0 and found["run"]["memory"] > 0 and found["flops"] > 0
