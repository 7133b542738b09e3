"""Conversations: answers are those of the whole text, only what is new is read, and limits are said aloud."""

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
import pytest
from PIL import Image as Pillow

from mmjax.chat.conversation import ChatSettings, Conversation
from mmjax.chat.opening import ChatModel, open_chat
from mmjax.data.examples import Image, Segment, Text, Turn
from mmjax.data.images.decode import load_image
from mmjax.data.packing.layout import RowShape, RowWriter, stack
from mmjax.data.text.tokenizer import SegmentTokenizer
from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import LanguageModelConfig, VLMConfig
from mmjax.typing import Array
from tests.chat import tiny_models

THINKING = tiny_models.TEMPLATE.replace(
    "{{ m.content }}",
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tiny_models.save(
        tmp_path_factory.mktemp("decoder") / "model", tiny_models.language_model(context_length=200)
    )


@pytest.fixture(scope="module")
def whole_model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tiny_models.save(tmp_path_factory.mktemp("vlm") / "model", tiny_models.vlm())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[pathlib.Path]:
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Pillow.fromarray(pixels).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@functools.cache
def opened(folder: pathlib.Path) -> ChatModel:
    return open_chat(str(folder))


@functools.cache
def _begun(folder: pathlib.Path, settings: ChatSettings) -> Conversation:
    model = opened(folder)
    return Conversation(dataclasses.replace(model, params=dict(model.params)), settings)


def begin(folder: pathlib.Path, **settings: object) -> Conversation:
    """A new conversation. There is one at a time with the same settings: compiled programs are its own."""
    conversation = _begun(folder, ChatSettings(**{"max_new_tokens": 12} | settings))
    conversation.reset()
    return conversation


def ask(conversation: Conversation, question: str, **options: object) -> str:
    return "".join(conversation.ask(question, **options))


@functools.cache
def forward(config: LanguageModelConfig | VLMConfig) -> Callable[..., Array]:
    model_def = parameters.abstract(config)[0]
    return jax.jit(lambda params, *inputs: model_def.merge(params)(*inputs))


def greedy(model: ChatModel, segments: tuple[Segment, ...], steps: int, length: int = 192) -> str:
    """The answer to a text by full passes over rows that are built as those of training are."""
    pixels = {id(part): load_image(part.source, 8) for part in segments if isinstance(part, Image)}
    prompt = SegmentTokenizer(model.tokenizer, 4).prefix(segments)
    writer = RowWriter(
        RowShape(length, 2, 4, 8, model.tokenizer.pad), lambda image: pixels[id(image)]
    )
    writer.write(prompt)
    row, place, answer = writer.row, len(prompt.tokens), []
    while len(answer) < steps:
        batch = stack([row])
        inputs = (
            (batch,) if isinstance(model.config, VLMConfig) else (batch.tokens, batch.segment_ids)
        )
        token = int(forward(model.config)(model.params, *inputs)[0, place - 1].argmax())
        if token in model.ends:
            break
        answer.append(token)
        row.tokens[place], row.segment_ids[place], row.positions[place] = token, 1, place
        place += 1
    return model.tokenizer.decode(answer).lstrip()


def user(text: str, *images: Image) -> Turn:
    return Turn("user", (*images, Text(text)))


def assistant(text: str) -> Turn:
    return Turn("assistant", (Text(text),))


@pytest.mark.parametrize("system", [None, "be brief"])
def test_answers_are_those_of_the_whole_text(folder: pathlib.Path, system: str | None):
    conversation, model = begin(folder, system=system), opened(folder)
    turns = [] if system is None else [Turn("system", (Text(system),))]
    for question in ("one?", "and two, or more?", "three"):
        turns.append(user(question))
        answer = ask(conversation, question)
        assert answer == greedy(model, model.template.conversation(turns), 12)
        turns.append(assistant(answer))
    assert conversation.turns == turns
    assert conversation.finish_reason == "length"


def test_only_what_is_new_is_read(folder: pathlib.Path):
    conversation = begin(folder)
    first = ask(conversation, "one?")
    assert conversation.tokens_read == 2 + len("one?") + 2  # bos and user; end and model
    assert len(first) == 12
    ask(conversation, "two")
    # The last token of the answer, its end, user, text, end and model.
    assert conversation.tokens_read == 1 + 1 + 1 + len("two") + 2


def test_a_new_beginning_gives_the_same_answers(folder: pathlib.Path):
    conversation = begin(folder, temperature=2.0, seed=3)
    said = [ask(conversation, "one?"), ask(conversation, "two?")]
    conversation.reset()
    assert conversation.turns == []
    assert [ask(conversation, "one?"), ask(conversation, "two?")] == said
    assert ask(begin(folder, temperature=2.0, seed=4), "one?") != said[0]


def test_a_question_that_does_not_fit_is_forgotten(folder: pathlib.Path):
    conversation = begin(folder)
    ask(conversation, "one?")
    undisturbed = ask(conversation, "two")
    conversation.reset()
    ask(conversation, "one?")
    before = list(conversation.turns)
    with pytest.raises(InputError, match=r"has 322 tokens; the model reads at most 200\b"):
        ask(conversation, "x" * 298)
    assert conversation.turns == before
    assert ask(conversation, "two") == undisturbed


def test_an_answer_ends_where_the_context_ends(folder: pathlib.Path):
    conversation = begin(folder, max_new_tokens=300)
    answer = ask(conversation, "x" * 176)
    assert conversation.finish_reason == "context"
    assert len(answer) == 200 - 180 + 1  # the last character is said, but not read any more
    with pytest.raises(InputError, match="reads at most 200"):
        ask(conversation, "y")


def stop_after(count: int) -> Callable[[], bool]:
    calls = itertools.count()
    return lambda: next(calls) >= count


def test_a_stopped_answer_belongs_to_the_conversation(folder: pathlib.Path):
    uncut = ask(begin(folder), "one?")
    conversation = begin(folder)
    answer = ask(conversation, "one?", should_stop=stop_after(5))
    assert conversation.finish_reason == "interrupted"
    assert answer == uncut[:5]
    assert conversation.turns == [user("one?"), assistant(answer)]


def test_a_question_that_was_stopped_before_its_answer_is_forgotten(folder: pathlib.Path):
    conversation = begin(folder)
    assert ask(conversation, "one?", should_stop=lambda: True) == ""
    assert conversation.turns == []
    assert ask(conversation, "one?") == ask(begin(folder), "one?")


def test_an_answer_ends_by_itself_and_its_end_is_not_shown(folder: pathlib.Path):
    conversation = begin(folder, temperature=3.0, max_new_tokens=150)
    said: list[str] = []
    while conversation.finish_reason != "eos" or not said:
        conversation.reset()
        said.append(ask(conversation, f"{len(said)}"))
        assert len(said) < 30
    assert "<" not in said[-1] or "end" not in said[-1]
    assert len(said[-1]) < 150


def test_thoughts_are_omitted_where_the_template_does_so(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tiny_models.save(tmp_path / "model", tiny_models.language_model(), template=THINKING)
    conversation = begin(folder)

    def think(*_: object) -> Iterator[str]:
        conversation.finish_reason = "eos"
        yield "hm</think>\nyes"

    with monkeypatch.context() as patch:
        patch.setattr(conversation, "_answer", think)
        assert ask(conversation, "one?") == "hm</think>\nyes"
    model = opened(folder)
    expected = greedy(
        model, model.template.conversation([user("one?"), assistant("yes"), user("two?")]), 12
    )
    assert ask(conversation, "two?") == expected


def test_images_stand_before_the_question(whole_model: pathlib.Path, images: list[pathlib.Path]):
    conversation, model = begin(whole_model), opened(whole_model)
    first, second = (Image(path) for path in images)
    conversation.add_image(images[0])
    turns = [user("\nwhat?", first)]
    answer = ask(conversation, "what?")
    assert answer == greedy(model, model.template.conversation(turns), 12)
    turns += [assistant(answer), user("and?")]
    answer = ask(conversation, "and?")
    assert conversation.tokens_read < 20
    assert answer == greedy(model, model.template.conversation(turns), 12)
    turns += [assistant(answer), user("\nthis?", second)]
    conversation.add_image(images[1])
    assert ask(conversation, "this?") == greedy(model, model.template.conversation(turns), 12)


def test_other_images_have_other_answers(whole_model: pathlib.Path, images: list[pathlib.Path]):
    conversation = begin(whole_model)
    answers = {ask(conversation, "\nwhat?")}
    for path in images:
        conversation.reset()
        conversation.add_image(path)
        answers.add(ask(conversation, "what?"))
    assert len(answers) == 3


def test_another_image_in_the_same_place_is_read(
    whole_model: pathlib.Path, images: list[pathlib.Path]
):
    expected = ask_about(whole_model, images[0])
    conversation = begin(whole_model)
    for path in images:
        conversation.add_image(path)
        assert ask(conversation, "what?", should_stop=lambda: True) == ""
        conversation._new_images.clear()
    conversation.add_image(images[0])
    assert ask(conversation, "what?") == expected


def ask_about(folder: pathlib.Path, path: pathlib.Path) -> str:
    conversation = begin(folder)
    conversation.add_image(path)
    return ask(conversation, "what?")


def test_a_decoder_sees_nothing(folder: pathlib.Path, images: list[pathlib.Path]):
    with pytest.raises(InputError, match="cannot look at images"):
        begin(folder).add_image(images[0])


def test_an_image_that_is_none(whole_model: pathlib.Path, tmp_path: pathlib.Path):
    conversation = begin(whole_model)
    with pytest.raises(InputError, match="missing image"):
        conversation.add_image(tmp_path / "none.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="is not a file"):
        conversation.add_image(tmp_path / "pipe.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="corrupt image"):
        conversation.add_image(tmp_path / "bad.png")


def test_a_tokenizer_of_another_model(tmp_path: pathlib.Path):
    folder = tiny_models.save(tmp_path / "model", tiny_models.language_model(vocabulary=40))
    with pytest.raises(InputError, match="does not belong to the model"):
        ask(begin(folder), "one?")
