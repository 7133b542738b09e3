"""What a run reads beside its recipe: what counts as a change of it, and what comes of one."""

import dataclasses
import io
import json
import os
import pathlib
import shutil
import types
from typing import Any, Literal

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image as Pillow
from rich.console import Console

from mmjax.config.load import load
from mmjax.data.examples import Example, Image
from mmjax.data.sources.base import SAMPLED, Source, SourceConfig
from mmjax.data.sources.llava import LlavaSource
from mmjax.data.text.huggingface_tokenizer import HuggingFaceTokenizer
from mmjax.data.text.templates import TEMPLATES
from mmjax.errors import InputError
from mmjax.recipe.recipe import Recipe
from mmjax.runs import answer, run
from mmjax.runs.inputs import Inputs
from mmjax.runs.workdir import Workdir
from mmjax.training.checkpoint import load_metadata
from tests import squares
from tests.chat import tiny_models


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "data").mkdir()
    return squares.write_data(tmp_path / "data")


@pytest.fixture
def recipe(data: pathlib.Path) -> Recipe:
    return load(squares.__file__, squares.settings(data))


def changed(recipe: Recipe, workdir: Workdir, tokenizer: Any = None) -> list[str]:
    """What another process says of the inputs; the first call of a test writes them down."""
    known = workdir.inputs.exists()
    workdir.path.mkdir(exist_ok=True)
    inputs = Inputs(recipe, workdir, tokenizer)
    now = inputs.read(recipe.stages.values())
    if not known:
        inputs.keep(now)
    return inputs.changed(now)


def with_stage(recipe: Recipe, **changes: Any) -> Recipe:
    stage = dataclasses.replace(recipe.stages["squares"], **changes)
    return dataclasses.replace(recipe, stages={"squares": stage})


def with_source(recipe: Recipe, source: SourceConfig) -> Recipe:
    data = dataclasses.replace(recipe.stages["squares"].data, sources={"squares": source})
    return with_stage(recipe, data=data)


def test_what_is_only_touched_copied_or_beside_it_is_no_change(tmp_path, data, recipe):
    """The folder of images is that of the data file, and the run itself lies in it."""
    workdir = Workdir(data / "run")
    assert changed(recipe, workdir) == []
    copy = shutil.copytree(data, tmp_path / "copy")
    shutil.rmtree(data)
    shutil.move(copy, data)
    for path in data.glob("*.*"):
        os.utime(path, (1, 1))
    (data / "notes.txt").write_text("of tomorrow")
    Pillow.new("RGB", (8, 8)).save(data / "of another set.png")
    (workdir.path / "previews").mkdir()
    Pillow.new("RGB", (8, 8)).save(workdir.preview("squares", ".png"))
    assert changed(recipe, workdir) == []


def swap(data: pathlib.Path) -> None:
    """The same records in another order: not a byte more."""
    lines = (data / "data.jsonl").read_text().splitlines()
    (data / "data.jsonl").write_text("\n".join([*lines[1:], lines[0]]))


def exchange(data: pathlib.Path) -> None:
    """One letter for another."""
    text = (data / "data.jsonl").read_text()
    (data / "data.jsonl").write_text(text.replace("a red square", "a rod square"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: squares.write_records(data, [{"image": "0.png", "text": "one"}] * 9), " bytes, not "),
        (swap, "data.jsonl has other contents of the same size"),
        (exchange, "data.jsonl has other contents of the same size"),
        (lambda data: (data / "3.png").unlink(), "3.png is gone"),
        (lambda data: Pillow.new("RGB", (90, 90), "red").save(data / "3.png"), "3.png has "),
        (lambda data: (data / "3.png").rename(data / "33.png"), "3.png is gone"),
    ],
)  # fmt: skip
def test_a_change_of_the_data_is_named(tmp_path, data, recipe, change, expected):
    workdir = Workdir(tmp_path / "run")
    changed(recipe, workdir)
    change(data)
    (line, *_) = [line for line in changed(recipe, workdir) if expected in line]
    assert line.startswith(f"jsonl {data / 'data.jsonl'}")


def test_a_missing_image_that_comes_later_is_a_change(tmp_path, data, recipe):
    (data / "3.png").rename(tmp_path / "3.png")
    workdir = Workdir(tmp_path / "run")
    assert changed(recipe, workdir) == []
    (tmp_path / "3.png").rename(data / "3.png")
    (line,) = changed(recipe, workdir)
    assert "3.png is new" in line


def test_the_images_of_conversations_are_among_them(tmp_path, data, recipe):
    turns = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "a square"}]
    records = [{"image": f"{number}.png", "conversations": turns} for number in range(4)]
    (data / "talk.json").write_text(json.dumps(records))
    source = LlavaSource("llava", str(data / "talk.json"), str(data))
    recipe, workdir = with_source(recipe, source), Workdir(tmp_path / "run")
    changed(recipe, workdir)
    (data / "7.png").unlink()  # which none of them shows
    assert changed(recipe, workdir) == []
    (data / "2.png").write_bytes(b"")
    (line,) = changed(recipe, workdir)
    assert "2.png has 0 bytes, not" in line and line.startswith("llava ")
    records.reverse()
    (data / "talk.json").write_text(json.dumps(records))
    assert any("talk.json has other contents" in line for line in changed(recipe, workdir))


@dataclasses.dataclass(frozen=True)
class _FolderSource(SourceConfig):
    """Of one's own, which says nothing of its files."""

    kind: Literal["folder"]
    path: str
    weight: float = 1.0

    def open(self, template, *, holdout=0, part="train"):
        return _Folder(self.path, template)


class _Folder(Source):
    def __init__(self, path, template):
        self._files, self._template = sorted(pathlib.Path(path).glob("*.png")), template

    def __len__(self):
        return len(self._files)

    def __getitem__(self, index):
        file = self._files[index]
        return Example((Image(file),), (self._template.caption(file.stem),), file.stem)


def test_a_source_of_ones_own_is_watched_without_saying_anything(tmp_path, data, recipe):
    recipe, workdir = (
        with_source(recipe, _FolderSource("folder", str(data))),
        Workdir(tmp_path / "run"),
    )
    assert changed(recipe, workdir) == []
    Pillow.new("RGB", (8, 8)).save(data / "a tenth.png")
    (line,) = changed(recipe, workdir)
    assert line == f"folder {data}: a tenth.png is new"


def test_of_many_images_some_are_looked_at_evenly():
    class Many(_Folder):
        def __init__(self, count):
            self._files = [pathlib.Path(f"{number}.png") for number in range(count)]
            self._template = TEMPLATES["plain"]

    assert len(list(Many(SAMPLED).input_files())) == SAMPLED
    found = [int(path.stem) for path in Many(3 * SAMPLED).input_files()]
    assert found == list(range(0, 3 * SAMPLED, 3))
    assert len(list(Many(3 * SAMPLED + 1).input_files())) <= SAMPLED


@pytest.fixture
def published(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with a tokenizer and weights in it."""
    folder = tmp_path / "published"
    folder.mkdir()
    tiny_models.save_tokenizer(folder)
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("tokenizer_config.json", '{"eos_token": "</s>", "add_bos_token": false}', True),
        ("chat_template.jinja", "{{ messages }}", True),
        ("special_tokens_map.json", "{}", True),
        ("README.md", "new words about it", False),
        ("model.safetensors", "", False),
    ],
)
def test_of_a_published_tokenizer_its_own_files_count(
    tmp_path, recipe, published, name, content, expected
):
    tokenizer, workdir = HuggingFaceTokenizer(published), Workdir(tmp_path / "run")
    assert changed(recipe, workdir, tokenizer) == []
    (published / name).write_text(content)
    lines = changed(recipe, workdir, tokenizer)
    assert [line.startswith(f"tokenizer: {name}") for line in lines] == [True] * expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.safetensors", True),
        ("config.json", True),
        ("README.md", False),
        ("tokenizer.json", False),
        ("pytorch_model.bin", False),
    ],
)
def test_of_weights_what_is_read_counts(tmp_path, recipe, published, name, expected):
    recipe = with_stage(recipe, init_from={"decoder": str(published), "vision": "random"})
    workdir = Workdir(tmp_path / "run")
    assert changed(recipe, workdir) == []
    (published / name).write_bytes(b"other")
    lines = changed(recipe, workdir)
    assert [line.startswith(f"weights {published}: {name}") for line in lines] == [True] * expected


def test_weights_that_have_moved_away_are_no_change(tmp_path, recipe, published):
    recipe, workdir = (
        with_stage(recipe, init_from={"decoder": str(published)}),
        Workdir(tmp_path / "run"),
    )
    changed(recipe, workdir)
    published.rename(tmp_path / "elsewhere")
    assert changed(recipe, workdir) == []


def test_a_tokenizer_that_the_run_has_built_is_among_them(tmp_path, recipe):
    workdir = Workdir(tmp_path / "run")
    with workdir.claim(recipe) as (claimed, tokenizer):
        assert changed(claimed, workdir, tokenizer) == []
        text = workdir.tokenizer.read_text()
        workdir.tokenizer.write_text(text.replace("square", "sqwere"))
        (line,) = changed(claimed, workdir, tokenizer)
    assert line == "tokenizer: tokenizer.json has other contents of the same size"


def test_many_changes_are_not_all_listed(tmp_path, data, recipe):
    workdir = Workdir(tmp_path / "run")
    records = [{"image": f"{number}.png", "text": "a square"} for number in range(40)]
    squares.write_records(data, records)
    changed(recipe, workdir)
    for number in range(40):
        (data / f"{number}.png").write_bytes(bytes(number + 1))
    *lines, last = changed(recipe, workdir)
    assert len(lines) == 12 and last.endswith(": and 28 more")


def train(recipe: Recipe, workdir: Workdir, **options: Any) -> str:
    """What was said."""
    out = io.StringIO()
    run.train(recipe, workdir, console=Console(file=out, width=200), **options)
    return out.getvalue()


def test_a_run_whose_data_have_changed_stops_until_that_is_accepted(tmp_path, data, recipe):
    workdir = Workdir(tmp_path / "run")
    train(recipe, workdir, stop_after_steps=2)
    inputs = json.loads(workdir.inputs.read_text())
    kept = load_metadata(workdir.checkpoints / "squares" / "2")["inputs"]
    assert kept.keys() == inputs.keys() and len(kept) == 2

    swap(data)
    before = squares.contents(workdir.checkpoints)
    for _ in range(2):  # it does not become right by trying again
        with pytest.raises(InputError, match=r"(?s)same size.*--accept_changed_data") as caught:
            train(recipe, workdir)
        assert "data.jsonl" in str(caught.value)
    workdir.inputs.write_text("[{")  # the checkpoint knows, too, though not which file
    with pytest.raises(InputError, match=r"data\.jsonl.*: it has changed"):
        train(recipe, workdir)
    assert squares.contents(workdir.checkpoints) == before
    workdir.inputs.write_text(json.dumps(inputs))

    said = train(recipe, workdir, accept_changed_data=True, stop_after_steps=2)
    assert "accepted: jsonl" in said
    (accepted,) = json.loads(workdir.summary.read_text())["accepted_changes"]
    assert (accepted["stage"], accepted["step"]) == ("squares", 2)
    assert "same size" in accepted["changes"][0]
    assert load_metadata(workdir.checkpoints / "squares" / "4")["inputs"] != kept

    train(recipe, workdir)  # accepted once for all
    summary = json.loads(workdir.summary.read_text())
    assert summary["accepted_changes"] == [accepted] and summary["stages"]
    assert "same size" in workdir.report.read_text()


def test_data_may_change_before_anything_was_trained_on_them(tmp_path, data, recipe, monkeypatch):
    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    workdir = Workdir(tmp_path / "run")
    monkeypatch.setattr(run, "train_stage", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, workdir)
    before = workdir.inputs.read_bytes()
    swap(data)
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        run.train(recipe, workdir, console=Console(file=out, width=200))
    assert "changed before anything was trained on it: jsonl" in out.getvalue()
    assert workdir.inputs.read_bytes() != before and not workdir.summary.exists()


def test_an_answer_with_another_tokenizer_is_warned_of(tmp_path, recipe, monkeypatch, capsys):
    workdir = Workdir(tmp_path / "run")
    with workdir.claim(recipe) as (claimed, tokenizer):
        changed(claimed, workdir, tokenizer)

    opened = types.SimpleNamespace(recipe=claimed, tokenizer=tokenizer)
    opened.answer = lambda image, prompt, **_: f"{image}, {prompt}"
    monkeypatch.setattr(answer, "open_run", lambda *_, **__: opened)
    asked = {"image": None, "prompt": "a square"}
    assert answer.generate(claimed, workdir, **asked) == "None, a square"
    assert capsys.readouterr().err == ""
    text = workdir.tokenizer.read_text()
    workdir.tokenizer.write_text(text.replace("square", "sqwere"))
    answer.generate(claimed, workdir, **asked)
    assert "WARNING" in capsys.readouterr().err
