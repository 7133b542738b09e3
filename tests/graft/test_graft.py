"""A surrogate of a published model, three stages on it, and the ways to the whole model: in the run, and from one run to a folder."""

import contextlib
import dataclasses
import gc
import io
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mmjax.config.checks import check
from mmjax.config.load import recipe_from
from mmjax.distributed.mesh import make_mesh
from mmjax.errors import InputError
from mmjax.graft import __main__ as graft
from mmjax.graft import graft as grafting
from mmjax.models import parameters
from mmjax.models.config import (
    DecoderConfig,
    LanguageModelConfig,
    LoRAConfig,
    VisionEncoderConfig,
    ViTConfig,
)
from mmjax.recipe.recipe import RANDOM, Recipe
from mmjax.runs import initial_weights, run
from mmjax.runs.initial_params import initial_params
from mmjax.runs.initial_weights import open_initial
from mmjax.runs.score import evaluate
from mmjax.runs.workdir import Workdir
from mmjax.training.checkpoint import load_params
from mmjax.weights import load_pretrained, save_params

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
    layers=6,
    heads=2,
    kv_heads=1,
    head_dim=4,
    mlp_width=8,
    weight_std=0.3,
    embedding_std=0.3,
)
REPLACED = ((2, 5),)
LATE = ("connector/*", "vision/final_norm/*", "vision/separate_last_layers/*")
COLORS = ("red", "green", "blue")


def publish(folder: pathlib.Path, config, seed: int) -> str:
    draw = jax.jit(lambda: parameters.initialize(config, jax.random.key(seed)))
    save_params(draw(), config, folder)
    return str(folder)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("published")
    return {
        "vision": publish(folder / "encoder", VisionEncoderConfig(VISION), 1),
        "decoder": publish(folder / "decoder", LanguageModelConfig(DECODER), 2),
        "other": publish(folder / "other", LanguageModelConfig(DECODER), 3),
        "wider": publish(
            folder / "wider", LanguageModelConfig(dataclasses.replace(DECODER, vocabulary=296)), 2
        ),
    }


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, published: dict[str, str]) -> Recipe:
    folder = tmp_path_factory.mktemp("data")
    for index in range(6):
        Image.new("RGB", (16, 16), COLORS[index % 3]).save(folder / f"{index}.png")
    lines = [
        json.dumps({"image": f"{index}.png", "text": f"a {COLORS[index % 3]} square"})
        for index in range(6)
    ]
    (folder / "data.jsonl").write_text("\n".join(lines))
    source = {
        "kind": "jsonl",
        "path": str(folder / "data.jsonl"),
        "image_dir": str(folder),
        "holdout_by": "caption",
    }
    common = {
        "data": {"sources": {"colors": source}, "text_length": 12, "holdout": 2},
        "optimizer": {"learning_rate": 1e-2},
        "batch_size": 2,
        "steps": 2,
    }
    surrogate = {"decoder": {"replaced_layers": REPLACED}}
    connector = {
        "kind": "mlp",
        "feature_layers": (3,),
        "hidden_width": 8,
        "class_token": True,
        "final_norm": True,
        "image_boundary_tokens": True,
    }
    tree = {
        "model": {
            "vision": dataclasses.asdict(dataclasses.replace(VISION, separate_last_layers=1)),
            "connector": connector,
            "decoder": dataclasses.asdict(DECODER),
            "compute_dtype": "float32",
        },
        "stages": {
            "translator": {
                "model": surrogate,
                "init_from": {part: published[part] for part in ("vision", "decoder")},
                "trainable": ("connector/*", "vision/final_norm/*", "decoder/translators/*"),
                **common,
            },
            "encoder": {"model": surrogate, "trainable": LATE, **common},
            "decoder": {
                "transitions": ("graft",),
                "init_from": {"decoder": published["decoder"]},
                "trainable": (*LATE, "decoder/*"),
                **common,
            },
        },
        "evaluation": {
            "tasks": ("captions",),
            "batch_size": 2,
            "max_caption_tokens": 4,
            "untrained": False,
        },
        "logging": {"every": 1, "trackers": ("jsonl",)},
    }
    return recipe_from(tree, name="grafted")


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe
) -> tuple[Workdir, dict[str, int]]:
    """The finished run; and how many embedding tables were alive when a stage began to read published weights."""
    shape = (DECODER.vocabulary, DECODER.width)
    others = {id(array) for array in jax.live_arrays()}
    alive, real = {}, initial_weights.load_into

    def load_into(start, manifest, stage, *arguments):
        gc.collect()
        alive[stage.name] = sum(
            array.shape == shape and id(array) not in others for array in jax.live_arrays()
        )
        return real(start, manifest, stage, *arguments)

    workdir = Workdir(tmp_path_factory.mktemp("run") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initial_weights, "load_into", load_into)
        run.train(recipe, workdir, console=Console(file=io.StringIO()))
    return workdir, alive


@pytest.fixture(scope="module")
def finished(trained: tuple[Workdir, dict[str, int]]) -> Workdir:
    return trained[0]


def saved(workdir: Workdir, stage: str) -> dict[str, np.ndarray]:
    return load_params(workdir.checkpoints / stage / "2")[0]


def load_whole(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    return parameters.split(load_pretrained(path))[1]


def test_a_surrogate_has_the_blocks_of_its_target_and_trains_the_translator_alone(
    finished, published
):
    target = load_whole(published["decoder"])
    first = saved(finished, "translator")
    for path in ("attention/query/kernel", "mlp/up/kernel", "norm_mlp/scale"):
        whole = target[f"decoder/layers/{path}"]
        np.testing.assert_array_equal(first[f"decoder/kept_layers/0/layers/{path}"], whole[:2])
        np.testing.assert_array_equal(first[f"decoder/kept_layers/1/layers/{path}"], whole[5:])
        assert not np.array_equal(first[f"decoder/translators/0/layers/{path}"], whole[2:3])
    np.testing.assert_array_equal(first["decoder/embedding"], target["decoder/embedding"])
    notes = {
        entry["target"]: entry["note"]
        for entry in json.loads(finished.manifest("translator").read_text())["entries"]
    }
    assert (
        notes["decoder/translators/0/layers/mlp/up/kernel"]
        == "begins as block 2, in the place of 2 to 4"
    )


def test_the_encoder_learns_while_the_surrogate_is_frozen(finished):
    first, second = saved(finished, "translator"), saved(finished, "encoder")
    changed = {path for path in first if not np.array_equal(first[path], second[path])}
    assert {path.split("/")[0] for path in changed} == {"connector", "vision"}
    assert any(path.startswith("vision/separate_last_layers/") for path in changed) and not any(
        path.startswith("vision/layers/") for path in changed
    )
    assert {
        "connector/image_boundary_tokens/start",
        "connector/image_boundary_tokens/end",
        "vision/final_norm/scale",
    } <= changed


def test_grafting_in_the_run_leaves_the_surrogate_behind(finished):
    manifest = json.loads(finished.manifest("decoder").read_text())
    how = {(entry["target"].split("/")[0], entry["how"]) for entry in manifest["entries"]}
    assert how == {("vision", "copied"), ("connector", "copied"), ("decoder", "loaded")}
    assert manifest["dropped"] and all(path.startswith("decoder/") for path in manifest["dropped"])
    assert saved(finished, "decoder")["decoder/layers/mlp/up/kernel"].shape[0] == 6


def test_of_the_surrogate_only_what_is_grafted_is_read_again(
    finished, published, recipe, tmp_path, monkeypatch
):
    again = Workdir(tmp_path / "run")
    shutil.copytree(finished.path, again.path)
    shutil.rmtree(again.checkpoints / "decoder")
    summary = json.loads(again.summary.read_text())
    summary["stages"] = summary["stages"][:2]
    again.summary.write_text(json.dumps(summary))
    asked, begun = [], []

    class BegunError(Exception):
        """The stage has what it begins with: all that is looked at here."""

    def load(folder, shardings=None):
        asked.append((folder.parent.name, set(shardings)))
        return load_params(folder, shardings)

    def begin(stage, recipe, files, *, start, **others):
        first = start(make_mesh(recipe.mesh))
        begun.append((stage.name, jax.jit(first.make)(first.given)))
        raise BegunError

    monkeypatch.setattr("mmjax.runs.workdir.load_params", load)
    monkeypatch.setattr(run, "train_stage", begin)
    with pytest.raises(BegunError):
        run.train(recipe, again, console=Console(file=io.StringIO()))
    ((stage, paths),) = asked
    assert stage == "encoder" and {path.split("/")[0] for path in paths} == {"vision", "connector"}
    ((stage, params),) = begun
    assert stage == "decoder" and params.keys() == saved(finished, "decoder").keys()
    before, target = saved(finished, "encoder"), load_whole(published["decoder"])
    for path, value in params.items():
        if path.startswith("decoder/"):
            np.testing.assert_array_equal(value, target[path], err_msg=path)
        else:
            np.testing.assert_array_equal(value, before[path], err_msg=path)


@pytest.fixture(scope="module")
def grafted(tmp_path_factory, finished, published) -> pathlib.Path:
    out = tmp_path_factory.mktemp("out") / "model"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert (
            graft.main(
                [f"--encoder={finished.path}", f"--decoder={published['decoder']}", f"--out={out}"]
            )
            == 0
        )
    out.with_name("said").write_text(said.getvalue())
    return out


def test_a_folder_has_the_encoder_of_the_run_and_the_files_of_the_decoder(
    grafted, finished, published
):
    whole = load_whole(grafted)
    trained, target = saved(finished, "encoder"), load_whole(published["decoder"])
    for path, value in whole.items():
        if path.startswith("decoder/"):
            np.testing.assert_array_equal(value, target[path], err_msg=path)
        elif path.startswith("vision/layers/"):
            name = path.removeprefix("vision/layers/")
            both = np.concatenate(
                [
                    trained[f"vision/layers/{name}"],
                    trained[f"vision/separate_last_layers/layers/{name}"],
                ]
            )
            np.testing.assert_array_equal(value, both, err_msg=path)
        else:
            np.testing.assert_array_equal(value, trained[path], err_msg=path)
    for file in pathlib.Path(published["decoder"]).iterdir():
        assert (grafted / "decoder" / file.name).read_bytes() == file.read_bytes()
    assert json.loads((grafted / "manifest.json").read_text())["transitions"] == ["graft"]
    said = grafted.with_name("said").read_text()
    assert (
        re.search(r"decoder +loaded", said)
        and re.search(r"vision +(copied|joined|stacked)", said)
        and "dropped: decoder/" in said
    ), said


def test_the_way_there_and_back_leaves_the_encoder_as_it_was(grafted, finished, recipe):
    """surrogate -> target -> surrogate: a stage on the surrogate that begins with the grafted model."""
    stage = dataclasses.replace(recipe.stages["encoder"], init_from={"model": str(grafted)})
    with open_initial(stage.init_from, stage.model) as opened:
        params = opened.finish(opened.read(None, (), np.float32))
    before = saved(finished, "encoder")
    assert set(params) == set(before)
    for path, value in params.items():
        if not path.startswith("decoder/translators/"):
            np.testing.assert_array_equal(value, before[path], err_msg=path)


def test_one_workdir_gives_all_three_scores(finished, recipe):
    quiet = {"console": Console(file=io.StringIO())}
    evaluate(recipe, finished, checkpoint=str(finished.checkpoints / "encoder" / "2"), **quiet)
    evaluate(recipe, finished, begin="decoder", **quiet)
    noted = [json.loads(line) for line in finished.evaluations.read_text().splitlines()]
    assert [(record["stage"], record["step"]) for record in noted] == [
        ("encoder", 2),
        ("decoder", 0),
    ]
    final = json.loads(finished.summary.read_text())["eval"]
    scores = [*(record["eval"] for record in noted), final]
    assert len({score["captions"]["nll"] for score in scores}) == 3


@pytest.mark.slow
def test_the_last_checkpoint_has_the_score_of_the_run(finished, recipe):
    before = json.loads(finished.summary.read_text())["eval"]
    last = str(finished.checkpoints / "decoder" / "2")
    evaluate(recipe, finished, checkpoint=last, console=Console(file=io.StringIO()))
    noted = json.loads(finished.evaluations.read_text().splitlines()[-1])
    assert (noted["stage"], noted["step"]) == ("decoder", 2)
    assert noted["eval"]["captions"]["nll"] == before["captions"]["nll"]


def test_what_a_stage_begins_with_can_be_scored_once_it_is_known(
    recipe, published, tmp_path, monkeypatch
):
    quiet = {"console": Console(file=io.StringIO())}
    fresh, scored = Workdir(tmp_path / "run"), []

    def score(recipe, stage, params, *others, **options):
        scored.append(params)
        return {}

    monkeypatch.setattr("mmjax.runs.score.score", score)
    # Published weights and a connector that has learned nothing.
    evaluate(recipe, fresh, begin="translator", **quiet)
    (noted,) = [json.loads(line) for line in fresh.evaluations.read_text().splitlines()]
    assert (noted["stage"], noted["step"]) == ("translator", 0)
    np.testing.assert_array_equal(
        scored[0]["decoder/embedding"], load_whole(published["decoder"])["decoder/embedding"]
    )
    with pytest.raises(
        InputError,
        match="begins with what stage 'encoder' ends with, and that one has not finished",
    ):
        evaluate(recipe, fresh, begin="decoder", **quiet)


def adapted_or_drawn(recipe: Recipe, kind: str) -> Recipe:
    """The recipe with low-rank updates in its last stage, or with a decoder of random numbers there."""
    decoder = recipe.stages["decoder"]
    if kind == "lora":
        lora = LoRAConfig(rank=2, alpha=4.0, targets=("decoder/layers/attention/query",))
        adapted = dataclasses.replace(decoder.model, lora=lora)
        changes = {
            "model": adapted,
            "transitions": ("graft", "attach_lora"),
            "trainable": (*LATE, "*/lora_a", "*/lora_b"),
        }
    else:
        changes = {"init_from": {"decoder": RANDOM}}
    stages = recipe.stages | {"decoder": dataclasses.replace(decoder, **changes)}
    return dataclasses.replace(recipe, stages=stages)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "random"])
def test_a_target_that_is_adapted_or_drawn_is_trained(recipe, tmp_path, kind):
    changed, workdir = adapted_or_drawn(recipe, kind), Workdir(tmp_path / "run")
    run.train(changed, workdir, console=Console(file=io.StringIO()))
    after = saved(workdir, "decoder")
    shapes = parameters.abstract(changed.stages["decoder"].model)[1]
    assert {path: value.shape for path, value in after.items()} == {
        path: leaf.shape for path, leaf in shapes.items()
    }
    kernel = "decoder/layers/attention/query/kernel"
    target = load_whole(recipe.stages["decoder"].init_from["decoder"])
    assert np.array_equal(after[kernel], target[kernel]) == (kind == "lora")
    if kind == "lora":
        assert np.any(after["decoder/layers/attention/query/lora_b"])


@pytest.mark.parametrize("kind", ["lora", "random"])
def test_the_target_may_be_adapted_or_drawn(finished, recipe, tmp_path, kind):
    """Low-rank updates beside the kernels that are loaded; a decoder of random numbers, to measure cost."""
    changed, again = adapted_or_drawn(recipe, kind), Workdir(tmp_path)
    again.manifest("decoder").parent.mkdir()
    start = initial_params(
        changed,
        changed.stages["decoder"],
        make_mesh(recipe.mesh),
        again,
        trained=lambda before, needed: {
            path: value for path, value in saved(finished, before.name).items() if path in needed
        },
        say=lambda text: None,
    )
    params = jax.jit(start.make)(start.given)
    entries = {
        entry["target"]: entry["how"]
        for entry in json.loads(again.manifest("decoder").read_text())["entries"]
    }
    assert entries.keys() == params.keys()
    kernel = "decoder/layers/attention/query/kernel"
    if kind == "lora":
        adapters = {
            path: how for path, how in entries.items() if path.endswith(("/lora_a", "/lora_b"))
        }
        assert set(adapters.values()) == {"fresh"} and entries[kernel] == "loaded"
        np.testing.assert_array_equal(
            params[kernel], load_whole(recipe.stages["decoder"].init_from["decoder"])[kernel]
        )
    else:
        assert {how for path, how in entries.items() if path.startswith("decoder/")} == {"fresh"}
    assert {how for path, how in entries.items() if path.startswith("vision/")} == {"copied"}


def test_no_array_of_the_surrogate_lives_while_the_target_is_read(trained):
    assert trained[1] == {"translator": 0, "decoder": 0}


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ("other", "embeddings differ"),
        ("wider", "decoder.vocabulary of the surrogate is 288, and of the target 296"),
        ("vision", "not a language model"),
        ("nowhere", "nowhere"),
    ],
)
def test_a_decoder_that_the_surrogate_was_not_cut_from(
    finished, published, tmp_path, decoder, message, capsys
):
    path = published.get(decoder, str(tmp_path / "nowhere"))
    assert (
        graft.main([f"--encoder={finished.path}", f"--decoder={path}", f"--out={tmp_path / 'out'}"])
        == 2
    )
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_is_none(finished, published, tmp_path):
    with pytest.raises(InputError, match="no surrogate"):
        grafting.find_surrogate(finished.checkpoints / "decoder" / "2")
    with pytest.raises(InputError, match="There is no run"):
        grafting.find_surrogate(tmp_path)


def test_an_encoder_of_other_shapes_and_a_missing_translator(finished, recipe):
    encoder = recipe.stages["encoder"]
    smaller = dataclasses.replace(encoder.model.vision, mlp_width=16)
    other = dataclasses.replace(encoder, model=dataclasses.replace(encoder.model, vision=smaller))
    with pytest.raises(
        InputError, match=r"vision.mlp_width was \d+ and is now 16(.|\n)*misshapen: vision/.*mlp"
    ):
        check(dataclasses.replace(recipe, stages=recipe.stages | {"encoder": other}))
    whole = dataclasses.replace(encoder.model.decoder, replaced_layers=())
    first = dataclasses.replace(recipe.stages["translator"], trainable=("connector/*",))
    first = dataclasses.replace(first, model=dataclasses.replace(first.model, decoder=whole))
    with pytest.raises(InputError, match=r"'surrogate'(.|\n)*missing: decoder/(kept|translators)"):
        check(dataclasses.replace(recipe, stages=recipe.stages | {"translator": first}))


@pytest.mark.parametrize("replaced", [((2, 7),), ((5, 2),), ((2, 4), (3, 5)), ((2, 2),)])
def test_a_cut_outside_of_the_model(recipe, replaced):
    stage = recipe.stages["translator"]
    decoder = dataclasses.replace(stage.model.decoder, replaced_layers=replaced)
    stage = dataclasses.replace(stage, model=dataclasses.replace(stage.model, decoder=decoder))
    with pytest.raises(InputError, match="must be ranges"):
        check(dataclasses.replace(recipe, stages={"translator": stage}))
