"""Rows and models of chosen sizes, and what they may be made of on a machine without the packages for data."""

import dataclasses
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from measured_step import MeasuredStep
from synthetic import MODELS, make_batch, make_stage, small

from mmjax.config.load import load
from mmjax.models import parameters

ROOT = pathlib.Path(__file__).parents[2]
ABSENT = (
    "grain",
    "ml_collections",
    "tensorflow_datasets",
    "tensorflow",
    "array_record",
    "tensorboardX",
    "easy_vqa",
)
BLOCKED = """
import importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
sys.path[:0] = {paths!r}
for module in sys.argv[1:]:
    importlib.import_module(module)
"""


def test_nothing_of_a_step_or_of_generation_needs_the_packages_for_data():
    modules = [f"mmjax.{name}" for name in ("models.presets", "kernels")]
    modules += [f"mmjax.training.{name}" for name in ("step", "flops")]
    modules += ["measured_step", "decode_jax", "decode_torch", "trace_events", "gpu_parts"]
    program = BLOCKED.format(absent=ABSENT, paths=[str(ROOT), str(ROOT / "benchmarks")])
    done = subprocess.run([sys.executable, "-c", program, *modules], capture_output=True, text=True)
    assert not done.returncode, done.stderr[-500:]


def test_a_row_has_its_images_then_its_text():
    stage = make_stage("tiny", images=3, text=10, batch=2)
    batch, visual = make_batch(stage), 3 * stage.model.visual_tokens
    assert batch.tokens.shape == (2, visual + 10) and batch.images.shape == (2, 3, 8, 8, 3)
    np.testing.assert_array_equal(batch.visual_embedding_index[0], [*range(visual), *[-1] * 10])
    assert (batch.targets[:, :visual] == -1).all() and (batch.targets[:, -1] == -1).all()
    np.testing.assert_array_equal(batch.targets[:, visual:-1], batch.tokens[:, visual + 1 :])


def test_small_has_the_shapes_of_the_default_recipe():
    model, recipe = small(), next(iter(load(str(ROOT / "configs/cos.py")).stages.values())).model
    recipe = dataclasses.replace(
        recipe, decoder=dataclasses.replace(recipe.decoder, vocabulary=model.decoder.vocabulary)
    )

    def shapes(config):
        return {path: value.shape for path, value in parameters.abstract(config)[1].items()}

    assert shapes(model) == shapes(recipe)
    assert model.visual_tokens == recipe.visual_tokens


@pytest.mark.parametrize("name", MODELS)
def test_every_model_can_be_built(name):
    stage = make_stage(name, images=2, text=16, batch=1)
    assert parameters.abstract(stage.model)[1]
    assert any(
        parameters.matches(path, stage.trainable) for path in parameters.abstract(stage.model)[1]
    )


def test_a_model_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="no shape 'big'; there are tiny, small"):
        make_stage("big", images=1, text=1, batch=1)


@pytest.mark.slow
def test_steps_go_on_after_one_that_failed():
    stage = make_stage("tiny", images=1, text=8, batch=1)
    measured = MeasuredStep(stage)
    batch = measured.place(stage)
    assert measured.run(batch, 2) > 0
    with pytest.raises(ZeroDivisionError):  # images without pixels
        measured.run(jax.tree.map(lambda value: value[..., :0, :], batch), 1)
    assert measured.run(batch, 1) > 0
