"""Stages that begin with published weights: compared with the recipe, read, written down, trained on, and written back."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from mmjax.config.load import recipe_from
from mmjax.data.text.vocabulary import filled
from mmjax.distributed.mesh import make_mesh
from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, LanguageModelConfig, VisionEncoderConfig, ViTConfig
from mmjax.recipe.recipe import Recipe
from mmjax.runs import run
from mmjax.runs.export import export
from mmjax.runs.initial_params import initial_params
from mmjax.runs.initial_weights import check, open_initial
from mmjax.runs.workdir import Workdir
from mmjax.training.checkpoint import load_params
from mmjax.weights import load_pretrained, save_params
from tests.runs.test_run import make_recipe as make_two_stages
from tests.squares import get_config, settings, write_data

VISION = ViTConfig(
    image_size=16,
    patch_size=4,
    width=8,
    layers=3,
    heads=2,
    mlp_width=8,
    final_norm=True,
    weight_std=0.3,
    embedding_std=0.3,
)
DECODER = DecoderConfig(
    vocabulary=288,
    width=8,
    layers=1,
    heads=2,
    kv_heads=1,
    head_dim=4,
    mlp_width=8,
    weight_std=0.3,
    embedding_std=0.3,
)


def publish(folder: pathlib.Path, config: VisionEncoderConfig | LanguageModelConfig) -> None:
    draw = jax.jit(lambda: parameters.initialize(config, jax.random.key(1)))
    save_params(draw(), config, folder)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An encoder for larger images and with more blocks than the recipe has, and a decoder."""
    folder = tmp_path_factory.mktemp("published")
    for name, config in (
        ("encoder", VisionEncoderConfig(VISION)),
        ("decoder", LanguageModelConfig(DECODER)),
    ):
        publish(folder / name, config)
    return folder


@pytest.fixture(scope="module")
def make_recipe(tmp_path_factory: pytest.TempPathFactory):
    """The recipe of tests/squares.py with weights; the connector alone is trained."""
    folder = write_data(tmp_path_factory.mktemp("data"))

    def make(changes: dict | None = None, **weights: str) -> Recipe:
        tree = get_config().to_dict()
        source = tree["stages"]["squares"]["data"]["sources"]["squares"]
        source |= {key.rsplit(".", 1)[1]: value for key, value in settings(folder).items()}
        tree["model"]["decoder"]["vocabulary"] = DECODER.vocabulary
        for part, changed in (changes or {}).items():
            tree["model"][part] |= changed
        tree["stages"]["squares"] |= {
            "steps": 2,
            "trainable": ("connector/*",),
            "init_from": weights,
        }
        return recipe_from(tree, name="squares")

    return make


@pytest.fixture(scope="module")
def weights(published):
    return {"vision": str(published / "encoder"), "decoder": str(published / "decoder")}


@pytest.fixture(scope="module")
def finished(make_recipe, weights, tmp_path_factory) -> tuple[Recipe, Workdir]:
    recipe, workdir = make_recipe(**weights), Workdir(tmp_path_factory.mktemp("run") / "run")
    run.train(recipe, workdir)
    return recipe, workdir


def test_a_stage_begins_with_them_and_says_so(finished, weights, published):
    _, workdir = finished
    params, _ = load_params(workdir.checkpoints / "squares" / "2")
    decoder, encoder = (load_pretrained(published / name) for name in ("decoder", "encoder"))
    for path, value in parameters.split(decoder)[1].items():
        np.testing.assert_array_equal(params[path], value, err_msg=path)
    theirs = parameters.split(encoder)[1]
    np.testing.assert_array_equal(
        params["vision/layers/mlp/up/kernel"], theirs["vision/layers/mlp/up/kernel"][:1]
    )
    assert params["vision/position"].shape == (5, 8)
    # The class token's stays.
    np.testing.assert_array_equal(params["vision/position"][0], theirs["vision/position"][0])
    origins = {
        entry["target"]: entry
        for entry in json.loads(workdir.manifest("squares").read_text())["entries"]
    }
    assert origins["vision/position"]["note"] == "4 x 4 to 2 x 2, bicubic, half-pixel centres"
    assert {entry["how"] for path, entry in origins.items() if path.startswith("connector/")} == {
        "fresh"
    }
    loaded = {
        (entry["how"], entry["source"])
        for path, entry in origins.items()
        if path.startswith("decoder/")
    }
    assert loaded == {("loaded", weights["decoder"])}


def test_what_was_trained_goes_back_to_folders_that_begin_the_next_run(make_recipe, finished):
    recipe, workdir = finished
    kept = json.loads((workdir.origins / "origins.json").read_text())["squares"]
    assert {part: begun["origin"]["family"] for part, begun in kept.items()} == {
        "vision": "CLIP",
        "decoder": "Llama",
    }
    folder = export(recipe, workdir)
    assert folder == workdir.path / "export" / "squares-2"
    assert json.loads((folder / "vision" / "preprocessor_config.json").read_text())["size"] == {
        "height": 8,
        "width": 8,
    }
    again = make_recipe(model=str(folder))
    check(again.stages["squares"])
    with open_initial(again.stages["squares"].init_from, again.stages["squares"].model) as opened:
        params = opened.finish(opened.read(None, (), np.float32))
    trained, _ = load_params(workdir.checkpoints / "squares" / "2")
    assert set(params) == set(trained)
    for path, value in trained.items():
        np.testing.assert_array_equal(params[path], value, err_msg=path)
    with pytest.raises(InputError, match="exists already"):
        export(recipe, workdir)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"decoder": {"rope_theta": 5e5}},
            r"model.decoder.rope_theta is 500000.0 in the recipe and 10000.0 in the file",
        ),
        ({"decoder": {"heads": 4}}, r"model.decoder.heads is 4 in the recipe and 2 in the file"),
        (
            {"vision": {"activation": "gelu"}},
            r"model.vision.activation is gelu in the recipe and quick_gelu in the file",
        ),
        ({"vision": {"layers": 4}}, r"model.vision.layers is 4 in the recipe and 3 in the file"),
    ],
)
def test_a_recipe_that_is_another_model_is_refused_before_it_trains(
    make_recipe, weights, model, message, tmp_path
):
    if "layers" in str(model):
        model = {**model, "connector": {"feature_layers": (4,)}}
    recipe, workdir = make_recipe(model, **weights), Workdir(tmp_path / "run")
    with pytest.raises(InputError, match=message):
        run.train(recipe, workdir)
    assert not workdir.checkpoints.exists()


def test_wrong_paths_and_parts(make_recipe, weights, published, tmp_path):
    for given, message in (
        ({"vision": str(tmp_path / "nowhere")}, "There is no"),
        ({"vision": weights["decoder"]}, "has no vision"),
        ({"decoder": "fetched:nothing"}, "There is no download 'nothing'"),
    ):
        stage = make_recipe(**given).stages["squares"]
        with pytest.raises(InputError, match=message):
            check(stage)
    with pytest.raises(InputError, match="Did you mean decoder"):
        from mmjax.config.checks import check as check_recipe

        check_recipe(make_recipe(decodr=weights["decoder"]))


def test_low_rank_updates_begin_fresh_beside_loaded_kernels(make_recipe, weights):
    recipe = make_recipe(decoder=weights["decoder"])
    stage = recipe.stages["squares"]
    model = dataclasses.replace(stage.model, lora=dataclasses.replace(stage.model.lora, rank=2))
    with open_initial(stage.init_from, model) as opened:
        assert not any("lora" in path for path in opened.paths)


def test_a_later_stage_may_load_a_part_anew(tmp_path):
    recipe = filled(make_two_stages(tmp_path), 64)
    stages = {
        name: dataclasses.replace(
            stage,
            model=dataclasses.replace(
                stage.model, vision=dataclasses.replace(stage.model.vision, patch_bias=True)
            ),
            trainable=("connector/*",),
        )
        for name, stage in recipe.stages.items()
    }
    vision = dataclasses.replace(stages["finetune"].model.vision, image_size=24, final_norm=True)
    publish(tmp_path / "encoder", VisionEncoderConfig(vision))
    stages["finetune"] = dataclasses.replace(
        stages["finetune"], init_from={"vision": str(tmp_path / "encoder")}
    )
    workdir = Workdir(tmp_path / "run")
    workdir.manifest("finetune").parent.mkdir(parents=True)
    model = stages["pretrain"].model
    before = jax.jit(lambda: parameters.initialize(model, jax.random.key(6)))()
    start = initial_params(
        dataclasses.replace(recipe, stages=stages),
        stages["finetune"],
        make_mesh(recipe.mesh),
        workdir,
        trained=lambda stage, needed: {path: before[path] for path in needed},
        say=lambda text: None,
    )
    params = jax.jit(start.make)(start.given)
    theirs = parameters.split(load_pretrained(tmp_path / "encoder"))[1]
    np.testing.assert_array_equal(
        params["vision/layers/mlp/up/kernel"], theirs["vision/layers/mlp/up/kernel"]
    )
    assert params["vision/position"].shape == (16, 8)
    assert not np.array_equal(
        before["vision/layers/mlp/up/kernel"], theirs["vision/layers/mlp/up/kernel"]
    )
    np.testing.assert_array_equal(params["decoder/embedding"], before["decoder/embedding"])
    manifest = json.loads(workdir.manifest("finetune").read_text())
    assert {entry["target"] for entry in manifest["entries"]} == params.keys()
