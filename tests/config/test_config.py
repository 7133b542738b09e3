"""Config files, overrides, contradictions, and recipes as JSON."""

import dataclasses
import json

import pytest

from mmjax.config import load as config
from mmjax.config.load import load, recipe_from
from mmjax.errors import InputError
from mmjax.models.connectors.linear import LinearConfig
from mmjax.recipe.serialization import digest, digested, from_json, to_json
from tests import squares
from tests.golden import update as golden
from tests.test_architecture import ROOT

CONFIG = golden.CONFIG


@pytest.fixture(scope="module")
def default():
    return load(CONFIG)


@pytest.mark.parametrize("variant", golden.WHOLE)
def test_a_resolved_recipe_is_the_golden_one(variant):
    expected = json.loads(golden.golden_file(variant).read_text())
    assert to_json(golden.recipe(variant)) == expected, (
        "python tests/golden/update.py writes it anew"
    )


def test_every_variant_of_the_file_is_golden():
    for file, variants in ((CONFIG, golden.VARIANTS), (golden.place("graft:")[0], golden.GRAFTED)):
        listed = str(_message(lambda file=file: load(f"{file}:no such")))
        names = {golden.place(variant)[1] for variant in variants}
        assert (
            set(listed.split("There are: ")[1].rstrip(".").replace("''", "").split(", ")) == names
        )


def test_the_stages_keep_their_order(default):
    assert list(default.stages) == ["pretrain", "finetune"]
    assert list(from_json(json.loads(json.dumps(to_json(default)))).stages) == [
        "pretrain",
        "finetune",
    ]


@pytest.mark.parametrize("variant", ["", "7b", "linear256", "scratch"])
def test_a_recipe_survives_json(variant):
    recipe = golden.recipe(variant)
    restored = from_json(json.loads(json.dumps(to_json(recipe))))
    assert restored == recipe
    assert digest(restored) == digest(recipe)


def test_every_inferred_or_substituted_fact_is_said():
    for variant, words in {
        "cos32-336": "inferred",
        "cos48-784": "inferred",
        "cos336-336": "inferred",
        "7b": "substituted",
    }.items():
        assert words in " ".join(golden.recipe(variant).notes.values()), variant


def test_7b_without_paths_names_every_flag_that_is_wanted():
    message = _message(lambda: load(f"{CONFIG}:7b"))
    for path in (
        "pretrain.data.sources.captions.path",
        "finetune.data.sources.conversations.image_dir",
    ):
        assert f"--config.stages.{path}=..." in message
    assert "--config.tokenizer.path=..." in message


GRAFT = str(ROOT / "configs" / "graft.py")
IMAGES = {f"data.sources.conversations.{field}": field for field in ("path", "image_dir")}


def test_data_that_all_stages_share_is_given_once():
    stages = load(
        f"{GRAFT}:8b",
        IMAGES | {"stages.decoder.data.sources.conversations.path": "own"},
        partial=True,
    ).stages
    assert [stage.data.sources["conversations"].path for stage in stages.values()] == [
        "path",
        "path",
        "own",
    ]
    assert [stage.data.sources["conversations"].weight for stage in stages.values()] == [
        624_610,
        1,
        1,
    ]
    assert [stage.data.text_length for stage in stages.values()] == [768] * 3
    message = _message(lambda: load(f"{GRAFT}:8b"))
    assert (
        message.count("--config.data.sources.conversations.path=") == 1 and ".text.path=" in message
    )
    assert "data.sources." not in _message(lambda: load(f"{GRAFT}:8b-full", IMAGES))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"stages.decoder.data.sources.conversation.path": "x"},
            "has no 'conversation'. Did you mean conversations?",
        ),
        ({"data.sources.text.path": "x"}, "config.data.sources has no 'text'"),
        (
            {"data.sources.text.path": "x"},
            "Stages have one of their own: --config.stages.translator.data.sources.text...",
        ),
        (
            {"data.text_lenght": "3"},
            "config.data.text_lenght: there is no such setting. Did you mean text_length?",
        ),
        (
            {f"stages.{stage}.data.flip": "true" for stage in ("translator", "encoder", "decoder")}
            | {"data.flip": "false"},
            "has no effect",
        ),
    ],
)
def test_wrong_settings_of_shared_data_are_named_where_they_stand(overrides, message):
    assert message in _message(lambda: load(f"{GRAFT}:8b", overrides, partial=True))


def test_overrides_reach_settings_that_the_file_leaves_at_their_default(default):
    changes = {
        "stages.pretrain.steps": "1e2",
        "stages.finetune.data.images_per_row": "2",
        "stages.finetune.model.lora.rank": "4",
        "stages.finetune.transitions": "inflate,resize_positions,attach_lora",
        "model.decoder.layers": "2",
        "stages.pretrain.model.decoder.layers": "2",
        "evaluation.limit": "10",
        "logging.trackers": "jsonl",
        "model.vision.weight_std": "0.02",
        "stages.pretrain.optimizer.clip_norm": "none",
    }
    recipe = load(CONFIG, changes)
    assert recipe.stages["pretrain"].steps == 100
    assert recipe.stages["pretrain"].optimizer.clip_norm is None
    assert recipe.stages["finetune"].data.images_per_row == 2
    assert recipe.stages["finetune"].model.lora.rank == 4
    assert recipe.stages["pretrain"].model.lora.rank == 0
    assert recipe.stages["finetune"].model.decoder.layers == 2
    assert recipe.evaluation.limit == 10
    assert recipe.logging.trackers == ("jsonl",)
    assert recipe.stages["pretrain"].model.vision.weight_std == 0.02
    assert (
        recipe.stages["pretrain"].model.decoder.weight_std
        is default.stages["pretrain"].model.decoder.weight_std
        is None
    )


def test_another_kind_replaces_a_group_as_a_whole():
    recipe = load(f"{CONFIG}:scratch", {"stages.finetune.model.connector.kind": "resampler"})
    assert recipe.stages["finetune"].model.connector.windows == (16, 8, 2)
    tree = config.read_config(CONFIG, "scratch").to_dict()
    tree["stages"]["finetune"]["model"]["connector"] = {"kind": "linear", "feature_layers": (3,)}
    connector = recipe_from(tree, name="cos").stages["finetune"].model.connector
    assert connector == LinearConfig(kind="linear", feature_layers=(3,))


def test_the_digest_ignores_what_changes_no_training_and_nothing_else(default):
    for path, value in {
        "logging.every": "7",
        "checkpoint.every": "9",
        "evaluation.limit": "3",
        "stages.pretrain.data.workers": "2",
    }.items():
        assert digest(load(CONFIG, {path: value})) == digest(default), path
    for path, value in {
        "seed": "1",
        "stages.pretrain.steps": "7",
        "stages.finetune.data.flip": "false",
        "model.unroll": "1",
    }.items():
        assert digest(load(CONFIG, {path: value})) != digest(default), path
    assert digest(dataclasses.replace(default, notes={})) == digest(default)
    swapped = dataclasses.replace(default, stages=dict(reversed(default.stages.items())))
    assert digest(swapped) != digest(default)


def test_a_setting_of_sources_that_came_later_changes_no_digest_where_it_is_empty():
    given = {f"{squares.SOURCE}.path": "a.jsonl", f"{squares.SOURCE}.image_dir": "."}
    recipe = load(squares.__file__, given)
    stages = digested(recipe)["stages"]
    assert "image_roots" not in stages["squares"]["data"]["sources"]["squares"]
    roots = given | {f"{squares.SOURCE}.image_roots": ("/b",)}
    assert digest(load(squares.__file__, roots)) != digest(recipe)


def test_what_a_source_holds_out_is_part_of_the_digest():
    sources = {f"{squares.SOURCE}.{field}": "x" for field in ("path", "image_dir")}
    changed = sources | {f"{squares.SOURCE}.holdout_by": "caption"}
    assert digest(load(squares.__file__, sources)) != digest(load(squares.__file__, changed))


def test_values_may_be_given_as_what_they_are():
    """Each as the same text on a command line; None is an absent value, also where the file has a number."""
    values = {
        "stages.pretrain.steps": 10,
        "stages.finetune.data.flip": False,
        "stages.finetune.model.connector.windows": (16, 8, 2),
        "stages.pretrain.optimizer.clip_norm": None,
        "evaluation.limit": None,
        "stages.pretrain.optimizer.learning_rate": 1e-3,
        "tokenizer.kind": "words",
        "logging.trackers": ("jsonl",),
    }
    texts = {
        path: "none" if value is None else value if isinstance(value, str) else str(value)
        for path, value in values.items()
    }
    recipe = load(CONFIG, values)
    assert recipe == load(CONFIG, texts) == load(CONFIG, list(values.items()))
    assert recipe.stages["pretrain"].optimizer.clip_norm is None
    assert recipe.stages["pretrain"].steps == 10 and not recipe.stages["finetune"].data.flip
    with pytest.raises(InputError, match=r"steps is 2.5; a whole number is expected"):
        load(CONFIG, {"stages.pretrain.steps": 2.5})
    with pytest.raises(InputError, match=r"steps has no value yet"):
        load(CONFIG, {"stages.pretrain.steps": None})


def _stage(**fields: str) -> dict[str, str]:
    return {f"stages.finetune.{key.replace('__', '.')}": value for key, value in fields.items()}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        # names
        ({"stages.finetun.steps": "5"}, "config.stages has no 'finetun'. Did you mean finetune?"),
        ({"modl.vision.width": "5"}, "config.modl: there is no such setting. Did you mean model?"),
        (
            _stage(stepz="5"),
            "config.stages.finetune.stepz: there is no such setting. Did you mean steps?",
        ),
        (
            {"model.vision.widht": "5"},
            "config.model.vision.widht: there is no such setting. Did you mean width?",
        ),
        (_stage(data__sources__easyvqa__weight="1"), "Did you mean easy_vqa?"),
        (_stage(data__sources__easy_vqa__kind="jsnl"), "Did you mean jsonl?"),
        (_stage(transitions="inflat"), "Did you mean inflate?"),
        ({"evaluation.tasks": "easy_vqs"}, "Did you mean easy_vqa?"),
        ({"logging.trackers": "jsonl,tensorbord"}, "Did you mean tensorboard?"),
        (
            {"kernels.attention": "mosaicgpu"},
            "config.kernels.attention has 'mosaicgpu'. Did you mean mosaic_gpu?",
        ),
        (
            _stage(trainable="connectr/*"),
            "config.stages.finetune.trainable must match parameters, and 'connectr/*' does not. Did you mean connector/",
        ),
        (
            {"mesh.data": "-1", "mesh.fsdp": "-1"},
            "config.mesh: sizes must be positive, and one of them at most -1",
        ),
        (
            {"mesh.context": "2"},
            "config.mesh.context must be 1, as no part of the model is split over 'context'; it is 2.",
        ),
        (
            {"logging.trackers": "jsonl,jsonl"},
            "config.logging.trackers must name each once, and has 'jsonl' twice",
        ),
        ({"logging.peak_flops": "-1"}, "config.logging.peak_flops must be positive, or none"),
        (
            _stage(model__lora__alpha="0"),
            "config.stages.finetune.model.lora.alpha must be positive",
        ),
        (
            _stage(model__vision__layers="4"),
            "vision.layers must be 3, the last block that the connector reads, not 4",
        ),
        (
            _stage(
                model__lora__rank="4",
                model__lora__targets="decodr/*",
                transitions="inflate,resize_positions",
            ),
            "lora.targets has 'decodr/*', which matches none",
        ),
        ({"seed.x": "5"}, "config.seed is 0, a single value"),
        ({"model": "5"}, "config.model is a group of settings"),
        ({"stages..steps": "5"}, "empty part"),
        # types
        (
            {"model.decoder.layers": "two"},
            "config.model.decoder.layers is 'two'; a whole number is expected",
        ),
        (
            _stage(model__vision__image_size="64.5"),
            "config.stages.finetune.model.vision.image_size is 64.5",
        ),
        (
            _stage(optimizer__learning_rate="fast"),
            "config.stages.finetune.optimizer.learning_rate is 'fast'; a number is expected",
        ),
        (_stage(data__flip="maybe"), "true or false is expected"),
        # effect
        ({"model.vision.image_size": "64"}, "has no effect, because every stage sets its own"),
        # values and combinations
        ({"seed": "-1"}, "config.seed must be 0 or more, not -1."),
        (_stage(steps="0"), "config.stages.finetune.steps must be positive, not 0."),
        (
            _stage(gradient_accumulation_steps="3"),
            "batch_size 16 must be divisible by gradient_accumulation_steps 3",
        ),
        (_stage(model__vision__image_size="66"), "64 and 68 are"),
        (_stage(model__connector__windows="16,7,2"), "must tile the grid of 16 x 16 patches"),
        (
            _stage(model__connector__queries="4,16,65"),
            "65 queries do not over 64 windows of side 2; 64 do",
        ),
        (_stage(model__connector__windows="2,8,16"), "coarse to fine"),
        (
            _stage(model__connector__windows="16,8"),
            "must name as many scales, and at least one; they name 2 and 3",
        ),
        (
            _stage(model__connector__parents="0,0,2"),
            "scale 2, but the stage before has scales 0 to 1",
        ),
        ({"stages.pretrain.model.connector.parents": "0,1"}, "must be empty in the first stage"),
        (
            {"stages.pretrain.transitions": "inflate"},
            "transitions must be empty in the first stage",
        ),
        (_stage(transitions="inflate"), "'resize_positions' resizes the position table"),
        (_stage(transitions="resize_positions"), "'inflate' grows them"),
        ({"model.connector.width": "64"}, "width 64 must be equal to vision.width 128"),
        ({"model.connector.feature_layers": "4"}, "must name blocks 1 to 3 of the encoder, not 4"),
        ({"model.connector.feature_layers": "3,2"}, "in the order in which blocks run"),
        ({"model.decoder.kv_heads": "3"}, "heads 4 must be divisible by kv_heads 3"),
        ({"model.decoder.head_dim": "31"}, "rotary positions"),
        ({"model.vision.heads": "3"}, "width 128 must be divisible by heads 3"),
        (_stage(data__text_length="0"), "text_length must be positive, not 0."),
        (_stage(data__holdout="-1"), "holdout must be 0 or more, not -1."),
        (_stage(data__skip_budget="2"), "share between 0 and 1"),
        (_stage(data__sources__easy_vqa__weight="0"), "easy_vqa.weight must be positive, not 0.0."),
        (_stage(optimizer__warmup_steps="-1"), "warmup_steps must be 0 or more, not -1."),
        (_stage(optimizer__beta2="1"), "beta2 must be at least 0 and below 1, not 1.0."),
        (_stage(optimizer__learning_rate="0"), "learning_rate must be positive, not 0.0."),
        (
            _stage(optimizer__groups="[{'match': 'conector/*'}]"),
            "groups must match trained parameters, and 'conector/*' does not.",
        ),
        ({"tokenizer.kind": "huggingface"}, "--config.tokenizer.path=..."),
        ({"tokenizer.path": "x.json"}, "is built from the training text"),
        (_stage(data__template="chat"), "a tokenizer of words has none"),
        (
            _stage(optimizer__schedule="cosine_over_all", steps="62"),
            "config.stages.finetune.steps must be at least warmup_steps + 4 = 64",
        ),
        ({"model.decoder.vocabulary": "0"}, "model.decoder.vocabulary must be positive, not 0."),
        ({"evaluation.limit": "0"}, "config.evaluation.limit must be at least 1, or none, not 0."),
        ({"checkpoint.every": "0"}, "config.checkpoint.every must be positive, not 0."),
        (
            {"logging.evaluate_every": "-1"},
            "config.logging.evaluate_every must be 0 (only at the end of a stage) or more, not -1.",
        ),
    ],
)
def test_wrong_settings_are_refused_with_a_message_that_helps(overrides, message):
    assert message in _message(lambda: load(CONFIG, overrides))


def test_all_contradictions_are_reported_at_once():
    message = _message(
        lambda: load(
            CONFIG, {"seed": "-1", "stages.finetune.steps": "0", "model.decoder.kv_heads": "3"}
        )
    )
    assert len(message.splitlines()) == 4  # the decoder is wrong in both stages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", "line 1: SyntaxError"),
        ("import no_such_package\n", "line 1: ModuleNotFoundError"),
        ("\n\ndef get_config():\n    return undefined\n", "line 4: NameError"),
        ("def get_config():\n    return 5\n", "get_config returned int"),
        ("x = 1\n", "has no function get_config"),
        ("def get_config():\n    return {'stages': {}}\n", "config.stages is missing"),
        ("def get_config():\n    return {'stages': {'a': 5}}\n", "config.stages.a is 5"),
        ("def get_config():\n    return {'stages': {'a': {}}}\n", "config.model is missing"),
        (
            "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({'stages': {'b': {}, 'a': {}}})\n",
            "ConfigDict(sort_keys=False)",
        ),
    ],
)
def test_a_config_file_that_fails_is_reported_with_its_line(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    assert message in _message(lambda: load(str(path)))


def test_a_missing_config_file_suggests_its_neighbour():
    assert "Did you mean" in _message(lambda: load(CONFIG.replace("cos.py", "cso.py")))
    message = _message(lambda: load("nowhere/cos.py"))
    assert message.startswith("There is no config file 'nowhere/cos.py'. mmjax ships one as 'cos'.")


def test_a_shipped_config_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("cos:many") == load(f"{CONFIG}:many")
    assert "Did you mean cos?" in _message(lambda: load("cso"))
    # A file of that name comes first.
    (tmp_path / "cos").write_text("def get_config(): raise ValueError('mine')")
    assert "mine" in _message(lambda: load("cos"))


def test_a_value_computed_from_another_follows_its_override(tmp_path):
    path = tmp_path / "computed.py"
    lines = [
        "from mmjax.config.load import read_config",
        "def get_config():",
        f"    config = read_config({CONFIG!r}, 'scratch')",
        "    finetune = config.stages.finetune",
        "    finetune.optimizer.warmup_steps = finetune.get_ref('steps') // 10",
        "    return config",
    ]
    path.write_text("\n".join(lines))
    assert (
        load(str(path), {"stages.finetune.steps": "200"}).stages["finetune"].optimizer.warmup_steps
        == 20
    )


def _message(call) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)
