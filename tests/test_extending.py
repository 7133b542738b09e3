"""docs/extending.md is true: each of its files, written as it stands there into the folder of its kind, works everywhere."""

import dataclasses
import importlib
import json
import pathlib
import re
import sys
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from PIL import Image

from mmjax import transitions
from mmjax.base.registry import modules_of
from mmjax.config.load import load
from mmjax.distributed import mesh
from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import VLMConfig
from mmjax.models.connectors.base import ConnectorConfig
from mmjax.plan import table
from mmjax.recipe.recipe import Recipe
from mmjax.runs import run
from mmjax.runs.workdir import Workdir
from tests import squares

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "extending.md"


def examples() -> dict[str, str]:
    """The files of the page by their path."""
    blocks = re.findall(
        r"```python\n# (mmjax/\S+\.py)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    return dict(blocks)


@pytest.fixture
def extended(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All files of the page, each in the folder of its kind; gone afterwards."""
    added = []
    for name, text in examples().items():
        path = pathlib.PurePosixPath(name)
        package = importlib.import_module(".".join(path.parent.parts))
        folder = tmp_path / "extended" / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        added.append((package, path.stem))
    importlib.invalidate_caches()
    yield
    for package, stem in added:
        sys.modules.pop(f"{package.__name__}.{stem}", None)
        if hasattr(package, stem):
            delattr(package, stem)


def squares_recipe(folder: pathlib.Path, **changes: object) -> Recipe:
    """The recipe of tests/squares.py with other settings by path."""
    config = folder / "config.py"
    lines = [f"    config.{path} = {value!r}" for path, value in changes.items()]
    text = [
        "from tests.squares import get_config as original",
        "",
        "def get_config(variant=None):",
        "    config = original()",
    ]
    config.write_text("\n".join([*text, *lines, "    return config"]))
    (folder / "data").mkdir()
    settings = squares.settings(squares.write_data(folder / "data"))
    own = "stages.squares.data.sources" in changes
    return load(str(config), {} if own else settings)


def with_vocabulary(model: VLMConfig) -> VLMConfig:
    """The model with a vocabulary, which a run takes from its tokenizer."""
    return dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, vocabulary=16))


@pytest.mark.usefixtures("extended")
def test_a_connector_of_ones_own(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    """Plan, shard; it is trained below."""
    recipe = squares_recipe(
        tmp_path, **{"model.connector": {"kind": "average_pool", "feature_layers": (1,)}}
    )
    stage = recipe.stages["squares"]
    assert stage.model.visual_tokens == 1
    table.run(recipe)
    assert "connector" in capsys.readouterr().out
    model = with_vocabulary(stage.model)
    shapes, axes = parameters.abstract(model)[1], parameters.logical_axes(model)
    sizes = tuple(2 if axis == "fsdp" else 1 for axis in mesh.MESH_AXES)
    devices = AbstractMesh(sizes, mesh.MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes))
    placed = mesh.parameter_shardings(shapes, axes, devices)[0]
    assert placed["connector/projection/kernel"].shard_shape((8, 8)) == (4, 8)


@pytest.mark.usefixtures("extended")
def test_its_checks_speak(tmp_path: pathlib.Path):
    connector = {"kind": "average_pool", "feature_layers": (1,), "side": 3}
    with pytest.raises(
        InputError, match=r"connector.side must divide the 2 patches of a side of the grid, not 3"
    ):
        squares_recipe(tmp_path, **{"model.connector": connector})


@pytest.mark.usefixtures("extended")
def test_a_connector_a_source_and_a_task_of_ones_own_in_one_run(tmp_path: pathlib.Path):
    """Train the connector on the source, score on the task, report."""
    images = tmp_path / "images"
    images.mkdir()
    for color in squares.COLORS:
        Image.new("RGB", (8, 8), color).save(images / f"a {color} square.png")
    source = {"kind": "named_images", "path": str(images)}
    recipe = squares_recipe(
        tmp_path,
        **{
            "model.connector": {"kind": "average_pool", "feature_layers": (1,)},
            "stages.squares.data.sources": {"squares": source},
            "evaluation": {"tasks": ("image_names",), "untrained": False},
            "stages.squares.steps": 2,
        },
    )
    workdir = Workdir(tmp_path / "run")
    run.train(recipe, workdir)
    result = json.loads(workdir.summary.read_text())["eval"]["image_names"]
    assert result["n"] == squares.HELD_OUT and result["baselines"]["question_only"] == 0
    assert "image_names" in workdir.report.read_text()
    assert "average_pool" in workdir.config.read_text()


@pytest.mark.usefixtures("extended")
def test_a_transition_of_ones_own(tmp_path: pathlib.Path):
    old = with_vocabulary(squares_recipe(tmp_path).stages["squares"].model)
    own = next(
        module
        for module in modules_of("mmjax.models.connectors")
        if module.__name__.endswith("average_pool")
    )
    new = dataclasses.replace(old, connector=own.AveragePoolConfig("average_pool", (1,)))
    params = jax.jit(lambda: parameters.initialize(old, jax.random.key(0)))()
    after, manifest = transitions.apply(
        ("fresh_connector",), params, old, new, jax.random.key(1), stage="squares"
    )
    kernel = "connector/projection/kernel"
    assert not np.array_equal(after[kernel], params[kernel])
    assert {entry.how for entry in manifest.entries if entry.target.startswith("connector/")} == {
        "fresh"
    }


def test_what_the_page_adds_is_gone_afterwards(tmp_path: pathlib.Path):
    with pytest.raises(
        InputError, match=r"connector.kind is 'average_pool'. There are: linear, mlp, resampler"
    ):
        squares_recipe(
            tmp_path, **{"model.connector": {"kind": "average_pool", "feature_layers": (1,)}}
        )


@pytest.mark.usefixtures("extended")
def test_a_connector_that_miscounts_its_tokens_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    own = next(m for m in modules_of("mmjax.models.connectors") if hasattr(m, "AveragePoolConfig"))
    monkeypatch.setattr(own.AveragePoolConfig, "visual_tokens", lambda self, vision: 3)
    connector = {"kind": "average_pool", "feature_layers": (1,)}
    with pytest.raises(InputError, match=r"must give 3 visual tokens.*the module gives 1 of width"):
        squares_recipe(tmp_path, **{"model.connector": connector})


@pytest.mark.usefixtures("extended")
def test_a_config_that_is_no_frozen_dataclass_is_named(monkeypatch: pytest.MonkeyPatch):
    own = next(m for m in modules_of("mmjax.models.connectors") if hasattr(m, "AveragePoolConfig"))
    plain = type("Plain", (ConnectorConfig,), {"__module__": own.__name__})
    monkeypatch.setattr(own, "Plain", plain, raising=False)
    with pytest.raises(AssertionError, match="Plain must be a frozen dataclass"):
        ConnectorConfig.kinds()
