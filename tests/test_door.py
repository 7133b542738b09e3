"""`import mmjax`: light, and what is behind it works without another import."""

import os
import pathlib
import subprocess
import sys

import pytest

import mmjax
from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.weights import save_params
from tests import squares
from tests.golden import update as golden
from tests.runs.test_initial_weights import DECODER


def run(script: str, **environment: str) -> str:
    """What a fresh process prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=kept | {"PYTHONPATH": str(squares.ROOT), "JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_is_light():
    """Nothing but the standard library and mmjax itself."""
    script = (
        "import sys; before = set(sys.modules)\n"
        "import mmjax; dir(mmjax)\n"
        "names = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(names - set(sys.stdlib_module_names)))"
    )
    assert run(script) == "['mmjax']\n"


def test_the_process_is_prepared_before_jax_starts(tmp_path: pathlib.Path):
    script = (
        "import mmjax; mmjax.kernels\n"
        "import jax; print(jax.config.jax_compilation_cache_dir)\n"
        "from mmjax.base import host; print(host._kept)"
    )
    folder, kept = run(script, MMJAX_CACHE_DIR=str(tmp_path)).split()
    assert folder == str(tmp_path / "jax")
    assert kept == str(sys.platform == "linux")


def test_weights_and_kernels_need_no_other_import(tmp_path: pathlib.Path):
    import jax

    from mmjax.models.config import LanguageModelConfig

    config = LanguageModelConfig(DECODER)
    save_params(parameters.initialize(config, jax.random.key(0)), config, tmp_path / "decoder")
    script = (
        "import mmjax\n"
        f"decoder = mmjax.weights.load_pretrained({str(tmp_path / 'decoder')!r})\n"
        "import jax, jax.numpy as jnp\n"
        "print(jax.jit(decoder)(jnp.ones((1, 3), jnp.int32)).shape)\n"
        "ones = jnp.ones((1, 4, 2, 8))\n"
        "print(jax.jit(mmjax.kernels.attention)(ones, ones, ones).shape)"
    )
    assert run(script) == f"(1, 3, {DECODER.vocabulary})\n(1, 4, 2, 8)\n"


def test_from_a_config_file_to_an_answer(tmp_path: pathlib.Path):
    data = squares.write_data(tmp_path)
    settings = squares.settings(data) | {
        "stages.squares.steps": 1,
        "stages.squares.data.holdout": 0,
        "logging.trackers": (),
    }
    recipe = mmjax.load_recipe(squares.__file__, settings)
    mmjax.train(recipe, tmp_path / "run")
    trained = mmjax.open_run(str(tmp_path / "run"))
    assert trained.checkpoint.name == "1" and trained.recipe.stages["squares"].steps == 1
    assert isinstance(trained.answer(data / "0.png", "what is it?"), str)


def test_a_recipe_is_the_one_of_the_command_line():
    recipe = mmjax.load_recipe(f"{golden.CONFIG}:few", {"stages.pretrain.steps": 10})
    assert (recipe.variant, recipe.stages["pretrain"].steps) == ("few", 10)


def test_other_names_are_unknown():
    assert {"kernels", "load_recipe", "open_run", "train", "weights"} <= set(dir(mmjax))
    with pytest.raises(AttributeError, match="module 'mmjax' has no attribute 'load_model'"):
        mmjax.load_model  # noqa: B018


def test_what_is_still_to_be_given_is_asked_for_when_it_is_needed(tmp_path: pathlib.Path):
    recipe = mmjax.load_recipe(f"{golden.CONFIG}:7b", {"stages.pretrain.steps": 10})
    assert recipe.stages["pretrain"].steps == 10
    with pytest.raises(InputError, match=r"init_from.decoder has no value yet; give"):
        mmjax.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
