"""Where a model to talk to finds its tokenizer, template and settings, and what is refused."""

import dataclasses
import io
import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image as Pillow
from rich.console import Console

from mmjax.chat.conversation import ChatSettings, Conversation
from mmjax.chat.hf_assets import end_tokens
from mmjax.chat.opening import ChatModel, PlainTemplate, open_chat
from mmjax.data.examples import Image, Special, Text, Turn
from mmjax.data.text.templates import TEMPLATES
from mmjax.data.text.tokenizer import WordTokenizer, tokenise
from mmjax.errors import InputError
from mmjax.port.port import port
from mmjax.runs.answer import generate
from mmjax.runs.workdir import Workdir
from tests import squares
from tests.chat import tiny_models

END = tiny_models.VOCABULARY - 2


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tiny_models.save(
        tmp_path_factory.mktemp("decoder") / "model", tiny_models.language_model()
    )


@pytest.fixture
def whole(tmp_path: pathlib.Path) -> pathlib.Path:
    return tiny_models.save(tmp_path / "whole", tiny_models.vlm())


def test_a_folder_with_everything(decoder: pathlib.Path):
    model = open_chat(str(decoder))
    assert model.template.stop == "<|end|>"
    assert model.ends == {model.tokenizer.eos, END}
    assert not model.notes
    assert model.config.compute_dtype == "float32"
    assert {str(value.dtype) for value in model.params.values()} == {"float32"}


def test_a_file_in_it(decoder: pathlib.Path):
    assert open_chat(str(decoder / "model.safetensors")).ends == {tiny_models.VOCABULARY - 5, END}


def test_bfloat16(decoder: pathlib.Path):
    model = open_chat(str(decoder), dtype="bfloat16")
    assert model.config.compute_dtype == "bfloat16"
    assert str(model.params["decoder/embedding"].dtype) == "bfloat16"


def test_other_ends_of_answers(decoder: pathlib.Path, tmp_path: pathlib.Path):
    folder = tiny_models.save(tmp_path / "model", tiny_models.language_model())
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    assert open_chat(str(folder)).ends == open_chat(str(decoder)).ends | {3, 4}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))
    assert open_chat(str(folder)).ends == open_chat(str(decoder)).ends | {5}


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"eos_token_id": [3, 4]}, {3, 4}),
        ({"text_config": {"eos_token_id": 5}}, {5}),
        ({"eos_token_id": 6, "text_config": {"eos_token_id": 5}}, {6}),
        ({"text_config": {"model_type": "llama"}}, set()),
        ({"decoder": {"eos_token_id": 7}, "text_config": {"eos_token_id": 5}}, {7}),
    ],
)
def test_without_settings_of_generation_the_model_says_where_answers_end(
    tmp_path: pathlib.Path, config: dict, found: set[int]
):
    """As transformers makes the former of the latter."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert set(end_tokens(tmp_path)) == found
    assert set(end_tokens(tmp_path / "model.safetensors")) == found
    (tmp_path / "generation_config.json").write_text("{}")
    assert end_tokens(tmp_path) == ()


def test_ends_that_only_the_model_names(tmp_path: pathlib.Path):
    folder = tiny_models.save(tmp_path / "model", tiny_models.language_model())
    ends = open_chat(str(folder)).ends
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [3, 4]}))
    assert open_chat(str(folder)).ends == ends | {3, 4}
    port(str(folder), tmp_path / "orbax", Console(file=io.StringIO()))
    assert open_chat(str(tmp_path / "orbax")).ends == ends | {3, 4}


def test_ends_that_are_texts_are_said_to_be_unread(tmp_path: pathlib.Path):
    folder = tiny_models.save(tmp_path / "model", tiny_models.language_model())
    (folder / "generation_config.json").write_text(json.dumps({"stop_strings": ["###"]}))
    assert any("names stop_strings" in note for note in open_chat(str(folder)).notes)


@pytest.mark.parametrize("value", [{"a": 1}, 1.5, "x", True, [1, "x"], [[1]]], ids=str)
def test_ends_of_a_strange_type(tmp_path: pathlib.Path, value: object):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(
        InputError,
        match=r"generation_config.json: eos_token_id is .*; it must be a token's id or a list of them",
    ):
        end_tokens(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": None}))
    assert end_tokens(tmp_path) == ()


def test_files_of_settings_that_are_none(whole: pathlib.Path, tmp_path: pathlib.Path):
    """A pipe would block for ever."""
    os.mkfifo(tmp_path / "generation_config.json")
    with pytest.raises(InputError, match=r"generation_config.json is not a file"):
        end_tokens(tmp_path)
    (whole / "preprocessor_config.json").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"preprocessor_config.json is not a file"):
        open_chat(str(whole))


def test_a_template_by_name(decoder: pathlib.Path):
    model = open_chat(str(decoder), template="plain")
    assert model.template is TEMPLATES["plain"]
    assert model.ends == {model.tokenizer.eos}
    with pytest.raises(InputError, match="There is no template 'chatml'"):
        open_chat(str(decoder), template="chatml")


LLAVA = (
    "{% for m in messages %}{{ m.role | upper }}: {% for p in m.content if p.type == 'image' %}<image>\n{% endfor %}"
    "{% for p in m.content if p.type == 'text' %}{{ p.text }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def test_answers_that_end_in_no_special_token_of_the_template(
    whole: pathlib.Path, tmp_path: pathlib.Path
):
    tiny_models.save_tokenizer(whole / "decoder", LLAVA)
    (whole / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))
    model = open_chat(str(whole), needs_encoder=True)
    assert model.ends == {model.tokenizer.eos, 5}
    turns = [
        Turn("user", (Image(image(tmp_path)), Text("\nwhat?"))),
        Turn("assistant", (Text("a"),)),
        Turn("user", (Text("b"),)),
    ]
    start, shown, rest = model.template.conversation(turns)
    assert (start, rest) == (Text("USER: "), Text("\nwhat? ASSISTANT: a USER: b ASSISTANT:"))
    assert shown is turns[0].content[0]
    assert answer(model, image(tmp_path), "what?")


def test_without_a_template_texts_are_continued(tmp_path: pathlib.Path):
    model = open_chat(
        str(tiny_models.save(tmp_path / "model", tiny_models.language_model(), template=None))
    )
    assert isinstance(model.template, PlainTemplate)
    assert any("as they stand" in note for note in model.notes)
    turns = [
        Turn("user", (Text("Once "),)),
        Turn("assistant", (Text("upon"),)),
        Turn("user", (Text(" a"),)),
    ]
    assert model.template.conversation(turns) == (Special("bos"), Text("Once upon a"))
    with pytest.raises(InputError, match="no chat template"):
        "".join(Conversation(model, ChatSettings(system="be brief")).ask("one"))


def test_a_token_that_separates_texts_does_not_begin_them():
    tokenizer = WordTokenizer([" a"])
    tokenizer.bos = tokenizer.eos
    assert PlainTemplate(tokenizer).prompt("text") == (Text("text"),)


def test_without_a_bos_of_its_own_nothing_begins_a_text(tmp_path: pathlib.Path):
    folder = tiny_models.save(tmp_path / "model", tiny_models.language_model(), template=None)
    settings = {"bos_token": None, "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model = open_chat(str(folder))
    assert model.template.prompt("text") == (Text("text"),)
    prompt = open_chat(str(folder), template="plain").template.prompt("text")
    assert tokenise(prompt, model.tokenizer, 1).tokens.tolist() == model.tokenizer.encode("text")


def test_several_templates_of_which_none_is_the_default(tmp_path: pathlib.Path):
    folder = tiny_models.save(tmp_path / "model", tiny_models.language_model(), template=None)
    (folder / "additional_chat_templates").mkdir()
    for name in ("rag", "tool_use"):
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(tiny_models.TEMPLATE)
    (note,) = open_chat(str(folder)).notes
    assert note.startswith("None of the chat templates rag, tool_use is named default")
    with pytest.raises(InputError, match="chat templates rag, tool_use, none of which is named"):
        open_chat(str(folder), template="chat")


def test_a_tokenizer_from_elsewhere(decoder: pathlib.Path, tmp_path: pathlib.Path):
    bare = tiny_models.save(tmp_path / "model", tiny_models.language_model())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    with pytest.raises(InputError, match=r"There is no tokenizer beside .*--tokenizer=PATH"):
        open_chat(str(bare))
    for place in (decoder, decoder / "tokenizer.json"):
        assert open_chat(str(bare), tokenizer=str(place)).ends == {tiny_models.VOCABULARY - 5, END}
    words = WordTokenizer.build(["a b"])
    words.save(tmp_path / "tokenizer.json")
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        found = open_chat(str(bare), tokenizer=str(place)).tokenizer
        assert isinstance(found, WordTokenizer)
        assert found.digest == words.digest


def test_the_tokenizer_of_an_exported_run(tmp_path: pathlib.Path):
    bare = tiny_models.save(tmp_path / "export" / "last-8", tiny_models.language_model())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    WordTokenizer.build(["a b"]).save(tmp_path / "tokenizer.json")
    assert isinstance(open_chat(str(bare)).tokenizer, WordTokenizer)


def test_an_encoder_does_not_speak(tmp_path: pathlib.Path):
    folder = tiny_models.save(tmp_path / "model", tiny_models.vision_encoder())
    with pytest.raises(InputError, match="vision encoder alone"):
        open_chat(str(folder))


def test_a_decoder_is_shown_no_images(decoder: pathlib.Path):
    with pytest.raises(InputError, match="decoder without an encoder"):
        open_chat(str(decoder), needs_encoder=True)


def test_nothing_is_there(tmp_path: pathlib.Path):
    with pytest.raises(InputError, match="There is no"):
        open_chat(str(tmp_path / "none"))


def image(folder: pathlib.Path) -> pathlib.Path:
    """12 x 8 pixels, black but for white sides."""
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:, :2] = pixels[:, -2:] = 255
    Pillow.fromarray(pixels).save(folder / "image.png")
    return folder / "image.png"


@pytest.mark.parametrize("place", ["", "vision"])
def test_images_are_prepared_as_the_folder_says(
    whole: pathlib.Path, place: str, tmp_path: pathlib.Path
):
    for written in whole.glob("**/preprocessor_config.json"):
        written.unlink()
    model = open_chat(str(whole), needs_encoder=True)
    assert any("stretched to 8 x 8" in note for note in model.notes)
    assert model.load_image(image(tmp_path)).max() > 200
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 8},
        "crop_size": 8,
    }
    (whole / place / "preprocessor_config.json").write_text(json.dumps(settings))
    model = open_chat(str(whole))
    assert not model.notes
    assert model.load_image(image(tmp_path)).max() == 0
    content = {"image_processor": settings | {"image_mean": [0.25] * 3, "image_std": [0.75] * 3}}
    (whole / place / "processor_config.json").write_text(json.dumps(content))
    (whole / place / "preprocessor_config.json").unlink()
    model = open_chat(str(whole))
    assert not model.notes
    assert model.load_image(image(tmp_path)).max() == 0
    if place == "vision":
        assert (model.config.vision.image_mean, model.config.vision.image_std) == (
            (0.25,) * 3,
            (0.75,) * 3,
        )
    (whole / place / "processor_config.json").unlink()
    (whole / place / "preprocessor_config.json").write_text(json.dumps(settings | {"crop_size": 4}))
    with pytest.raises(
        InputError, match=r"makes an image of 4 x 4 pixels of .*; the encoder reads 8 x 8"
    ):
        open_chat(str(whole)).load_image(image(tmp_path))


def answer(model: ChatModel, image: pathlib.Path, question: str) -> str:
    conversation = Conversation(model, ChatSettings(max_new_tokens=64))
    conversation.add_image(image)
    return "".join(conversation.ask(question)).strip()


@pytest.mark.slow
def test_a_run_answers_as_it_does_elsewhere(tmp_path: pathlib.Path):
    data = squares.write_data(tmp_path)
    workdir = Workdir(tmp_path / "run")
    process = squares.train(data, workdir.path)
    assert process.wait(timeout=300) == 0
    checkpoint = workdir.checkpoints / "squares" / str(squares.STEPS)
    expected = generate(workdir.recipe(), workdir, image=str(data / "0.png"), prompt="a")
    for place in (workdir.path, checkpoint):
        model = open_chat(str(place))
        assert model.images_first
        assert answer(model, data / "0.png", "a") == expected
    conversation = Conversation(
        dataclasses.replace(open_chat(str(workdir.path))), ChatSettings(max_new_tokens=2)
    )
    "".join(conversation.ask("a"))
    with pytest.raises(InputError, match="before the first question"):
        conversation.add_image(data / "0.png")
