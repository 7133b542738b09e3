"""What a run keeps of the models that its stages begin as, and what its checkpoints become without them."""

import contextlib
import io
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from mmjax.chat.opening import open_chat
from mmjax.config.load import recipe_from
from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.port.port import port
from mmjax.recipe.recipe import Recipe
from mmjax.recipe.serialization import digest
from mmjax.runs import origins
from mmjax.runs.export import export
from mmjax.runs.workdir import Workdir
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.state import create
from mmjax.weights.load import open_pretrained
from tests.chat import tiny_models
from tests.squares import get_config, settings, write_data

EOS, END = tiny_models.VOCABULARY - 5, tiny_models.VOCABULARY - 2
GENERATION = {"eos_token_id": [EOS, 3], "temperature": 0.6, "_from_model_config": True}
QUIET = Console(file=io.StringIO())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A decoder that was made to read 512 tokens, with all that stands beside one."""
    folder = tmp_path_factory.mktemp("base") / "decoder"
    tiny_models.save(folder, tiny_models.language_model(context_length=512))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    (folder / "LICENSE").write_text("do as you like")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"bos_token_id": 7}))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def make_recipe(base, data):
    """The recipe of tests/squares.py on the decoder and its tokenizer, or on words."""

    def make(template: str = "chat", words: bool = False, init: str | None = str(base)) -> Recipe:
        tree = get_config().to_dict()
        stage = tree["stages"]["squares"]
        source = stage["data"]["sources"]["squares"]
        source |= {key.rsplit(".", 1)[1]: value for key, value in settings(data).items()}
        stage["data"] |= {"template": template}
        tree["model"]["decoder"] = {
            "vocabulary": None if init is None else tiny_models.VOCABULARY,
            "width": 16,
            "layers": 2,
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 8,
            "mlp_width": 32,
        }
        # A form that is published.
        tree["model"]["vision"] |= {"norm": "layer"}
        if init is not None:
            stage["init_from"] = {"decoder": init}
        if not words:
            tree["tokenizer"] = {"kind": "huggingface", "path": str(base)}
        return recipe_from(tree, name="squares")

    return make


def begin(recipe: Recipe, workdir: Workdir, *, keep: bool = True) -> pathlib.Path:
    """A checkpoint of a run that was not trained. Returns its folder."""
    with workdir.claim(recipe) as (found, _):
        if keep:
            origins.keep(found, workdir)
        stage, key = found.stages["squares"], jax.random.key(0)
        random = np.random.default_rng(0)
        shapes = parameters.abstract(stage.model)[1]
        params = {
            path: random.normal(size=shape.shape).astype(shape.dtype)
            for path, shape in shapes.items()
        }
        folder = workdir.checkpoints / "squares"
        with Checkpoints(folder) as kept:
            state = create(params, stage, key)
            kept.save(2, state, row=2, metadata={"config_digest": digest(found)})
    return folder / "2"


@contextlib.contextmanager
def away(folder: pathlib.Path):
    """While it lasts, a folder is somewhere else."""
    moved = folder.with_name("moved")
    folder.rename(moved)
    try:
        yield
    finally:
        moved.rename(folder)


def read(path: pathlib.Path) -> dict:
    return json.loads(path.read_text())


def check_decoder(folder: pathlib.Path) -> None:
    """What an exported decoder keeps of its origin, and what it has learned."""
    settings = read(folder / "generation_config.json")
    assert settings == {"eos_token_id": [EOS, 3, END], "temperature": 0.6, "bos_token_id": EOS - 1}
    config = read(folder / "config.json")
    assert config["max_position_embeddings"] == 512
    assert config["eos_token_id"] == [EOS, 3, END]
    assert read(folder / "tokenizer_config.json")["chat_template"] == tiny_models.TEMPLATE


def test_a_run_needs_what_it_began_as_no_more(make_recipe, base, tmp_path):
    recipe, workdir = make_recipe(), Workdir(tmp_path / "run")
    checkpoint = begin(recipe, workdir)
    with away(base):
        folder = export(recipe, workdir, console=QUIET)
        check_decoder(folder / "decoder")
        assert (folder / "decoder" / "LICENSE").read_text() == "do as you like"
        port(str(checkpoint), tmp_path / "ported", QUIET)
        port(str(checkpoint), tmp_path / "orbax", QUIET, to="orbax")
        check_decoder(tmp_path / "ported" / "decoder")
        assert (tmp_path / "orbax" / "LICENSE").exists()
        for place in (folder, tmp_path / "ported", tmp_path / "orbax", workdir.path):
            model = open_chat(str(place))
            assert model.ends == {EOS, 3, END}
            assert model.template.stop == "<|end|>"
        with open_pretrained(tmp_path / "orbax") as opened:
            assert opened.config.decoder.context_length == 512
        # Elsewhere too.
        there = shutil.copytree(folder / "decoder", tmp_path / "there")
        assert open_chat(str(there)).ends == {EOS, 3, END}


def test_where_a_model_learned_to_stop_follows_from_its_template(make_recipe, base, tmp_path):
    recipe, workdir = make_recipe("plain"), Workdir(tmp_path / "run")
    begin(recipe, workdir)
    (base / "generation_config.json").rename(tmp_path / "generation")
    try:
        (tmp_path / "again").mkdir()
        begin(recipe, Workdir(tmp_path / "again" / "run"))
        folder = export(recipe, Workdir(tmp_path / "again" / "run"), console=QUIET) / "decoder"
        # Those of config.json.
        assert read(folder / "generation_config.json") == {"eos_token_id": EOS, "bos_token_id": 7}
    finally:
        (tmp_path / "generation").rename(base / "generation_config.json")
    folder = export(recipe, workdir, console=QUIET) / "decoder"
    assert read(folder / "generation_config.json")["eos_token_id"] == [EOS, 3]


def test_a_decoder_that_began_as_nothing(make_recipe, tmp_path):
    recipe, workdir = make_recipe(init=None), Workdir(tmp_path / "run")
    begin(recipe, workdir)
    folder = export(recipe, workdir, console=QUIET) / "decoder"
    assert read(folder / "generation_config.json") == {
        "eos_token_id": [EOS, END],
        "bos_token_id": EOS - 1,
    }
    # The longest row that it was trained on: 12 tokens of text, and 4 of an image.
    assert read(folder / "config.json")["max_position_embeddings"] == 16


def test_with_a_tokenizer_of_words_ends_of_another_one_mean_nothing(make_recipe, base, tmp_path):
    recipe, workdir = make_recipe("plain", words=True, init=None), Workdir(tmp_path / "run")
    begin(recipe, workdir)
    folder = export(recipe, workdir, console=QUIET) / "decoder"
    assert read(folder / "generation_config.json") == {"eos_token_id": 2, "bos_token_id": 1}
    there = shutil.copytree(folder, tmp_path / "there")
    assert open_chat(str(there), template="plain").ends == {2}


def test_a_run_of_an_older_mmjax_reads_what_it_began_as(make_recipe, base, tmp_path):
    recipe, workdir = make_recipe(), Workdir(tmp_path / "run")
    checkpoint = begin(recipe, workdir, keep=False)
    origins.keep(recipe, workdir)
    assert not workdir.origins.exists()
    port(str(checkpoint), tmp_path / "ported", QUIET)
    check_decoder(tmp_path / "ported" / "decoder")
    with away(base), pytest.raises(InputError, match="There is no"):
        export(recipe, workdir, console=QUIET)


def test_what_is_kept_is_kept_once_and_whole(make_recipe, base, tmp_path):
    recipe, workdir = make_recipe(), Workdir(tmp_path / "run")
    with workdir.claim(recipe) as (found, _):
        (workdir.path / ".origins-of-a-process-that-was-killed").mkdir()
        origins.keep(found, workdir)
        assert [path.name for path in workdir.path.glob("*origins*")] == ["origins"]
        with away(base):
            origins.keep(found, workdir)
            assert workdir.resolve(found)[1].special("<|end|>") == END
    (workdir.origins / "origins.json").write_text('{"squares": {"decoder": {"origin": 3}}}')
    with pytest.raises(InputError, match=r"origins\.json: "):
        origins.began_as(recipe, workdir, "squares")


def test_what_is_missing_when_a_run_begins_leaves_nothing(make_recipe, tmp_path):
    recipe, workdir = make_recipe(init=str(tmp_path / "nowhere")), Workdir(tmp_path / "run")
    with (
        pytest.raises(InputError, match=r"There is no .*nowhere"),
        workdir.claim(recipe) as (found, _),
    ):
        origins.keep(found, workdir)
    assert not workdir.path.exists()
