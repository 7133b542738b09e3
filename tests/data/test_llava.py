"""The LLaVA source: images where their placeholders stand, loss on the assistant alone, unusable conversations named."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.data.examples import Image, SampleError, Special, Text
from mmjax.data.sources.llava import LlavaSource
from mmjax.data.text.templates import TEMPLATES
from mmjax.errors import InputError


def human(value):
    return {"from": "human", "value": value}


def gpt(value):
    return {"from": "gpt", "value": value}


def opened(folder, records, template="plain", **options):
    data = records if isinstance(records, bytes) else json.dumps(records).encode()
    (folder / "data.json").write_bytes(data)
    config = LlavaSource("llava", path=str(folder / "data.json"), image_dir=str(folder))
    return config.open(TEMPLATES[template], **options)


def only(folder, record, **options):
    return opened(folder, [record], **options)[0]


def without_specials(example):
    return [
        part.source.name if isinstance(part, Image) else part.text
        for part in example.continuations[0]
        if not isinstance(part, Special)
    ]


@pytest.mark.parametrize(
    ("image", "question", "expected"),
    [
        ("a.png", "<image>\nwhat?", ["a.png", "\nwhat?", " red"]),
        ("a.png", "what?\n<image>", ["what?\n", "a.png", " red"]),
        ("a.png", "is <image> red?", ["is ", "a.png", " red?", " red"]),
        (["a.png", "b.png"], "<image><image>same?", ["a.png", "b.png", "same?", " red"]),
        (["a.png"], "<image>what?", ["a.png", "what?", " red"]),
        (None, "what?", ["what?", " red"]),
    ],
)
def test_images_stand_where_their_marks_are(tmp_path, image, question, expected):
    example = only(
        tmp_path, {"id": "x", "image": image, "conversations": [human(question), gpt("red")]}
    )
    assert example.id == "data.json/x" and example.prefix == () and len(example.continuations) == 1
    assert without_specials(example) == expected


def test_several_turns_are_one_continuation_and_only_the_assistant_carries_loss(tmp_path):
    turns = [human("<image>what?"), gpt("red"), human("sure? <image>"), gpt("yes")]
    continuation = only(
        tmp_path, {"image": ["a.png", "b.png"], "conversations": turns}
    ).continuations[0]
    supervised = [
        segment for segment in continuation if not isinstance(segment, Image) and segment.loss
    ]
    assert supervised == [
        Text(" red", True),
        Special("eos", True),
        Text(" yes", True),
        Special("eos", True),
    ]
    assert [type(segment).__name__ for segment in continuation] == [
        "Special",
        "Image",
        "Text",
        "Text",
        "Special",
        "Text",
        "Image",
        "Text",
        "Special",
    ]


@given(
    st.lists(st.lists(st.text("ab c?", max_size=4), min_size=1, max_size=4), min_size=1, max_size=4)
)
def test_no_text_and_no_image_is_lost(tmp_path_factory, questions):
    folder = tmp_path_factory.mktemp("llava")
    placeholders = sum(len(parts) - 1 for parts in questions)
    turns = [turn for parts in questions for turn in (human("<image>".join(parts)), gpt("yes"))]
    record = {"image": [f"{index}.png" for index in range(placeholders)], "conversations": turns}
    continuation = only(folder, record, template="plain").continuations[0]
    expected = "".join("<image>".join(parts).strip() + " yes" for parts in questions)
    assert (
        "".join(
            "<image>" if isinstance(part, Image) else part.text
            for part in continuation
            if not isinstance(part, Special)
        )
        == expected
    )
    assert [part.source.name for part in continuation if isinstance(part, Image)] == record["image"]


def test_a_system_turn_replaces_the_template_s_own(tmp_path):
    turns = [{"from": "system", "value": "Be brief."}, human("what?"), gpt("red")]
    continuation = only(tmp_path, {"conversations": turns}, template="vicuna_v1").continuations[0]
    assert continuation[1] == Text(" Be brief. USER: what? ASSISTANT:")


def test_what_the_assistant_says_before_any_question_is_dropped(tmp_path):
    said, greeted = [human("what?"), gpt("red")], [gpt("Hello."), human("what?"), gpt("red")]
    assert (
        only(tmp_path, {"conversations": greeted}).continuations
        == only(tmp_path, {"conversations": said}).continuations
    )


@pytest.mark.parametrize(
    ("record", "cause"),
    [
        (
            {"image": "a.png", "conversations": [human("what?"), gpt("red")]},
            "image placeholders do not match images",
        ),
        (
            {"conversations": [human("<image>what?"), gpt("red")]},
            "image placeholders do not match images",
        ),
        (
            {"image": ["a.png"], "conversations": [human("<image><image>"), gpt("red")]},
            "image placeholders do not match images",
        ),
        ({"conversations": []}, "no conversation"),
        ({"text": "a"}, "no conversation"),
        ({"conversations": [human("what?")]}, "no answer"),
        ({"conversations": [human("what?"), gpt(" ")]}, "no answer"),
        ({"conversations": [gpt("red")]}, "no answer"),
        ({"conversations": [human("a"), human("b"), gpt("red")]}, "turns do not alternate"),
        ({"conversations": [{"from": "robot", "value": "a"}]}, "bad turn"),
        ({"conversations": [{"from": ["human"], "value": "a"}]}, "bad turn"),
        ({"conversations": [{"from": "human", "value": None}]}, "bad turn"),
        ({"conversations": ["a"]}, "bad turn"),
        ({"image": 3, "conversations": [human("a"), gpt("b")]}, "bad image"),
        ({"image": [""], "conversations": [human("<image>"), gpt("b")]}, "bad image"),
    ],
)
def test_an_unusable_conversation_names_its_cause(tmp_path, record, cause):
    with pytest.raises(SampleError) as error:
        only(tmp_path, record)
    assert error.value.cause == cause


def test_bad_utf8_spoils_one_conversation(tmp_path):
    good = json.dumps({"conversations": [human("what?"), gpt("red")]}).encode()
    source = opened(
        tmp_path, b"[" + good + b"," + good.replace(b"red", b"\xff") + b"," + good + b"]"
    )
    with pytest.raises(SampleError, match="bad UTF-8"):
        source[1]
    assert without_specials(source[2]) == ["what?", " red"]


def test_holdout_is_the_end_of_the_list(tmp_path):
    records = [
        {"id": str(number), "conversations": [human("what?"), gpt("red")]} for number in range(5)
    ]
    assert [
        opened(tmp_path, records, holdout=2, part="holdout")[index].id for index in range(2)
    ] == ["data.json/3", "data.json/4"]
    assert len(opened(tmp_path, records, holdout=2)) == 3


def test_what_is_missing_at_opening_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        LlavaSource("llava", str(tmp_path / "none.json"), str(tmp_path)).open(TEMPLATES["plain"])
    with pytest.raises(InputError, match="image_dir"):
        LlavaSource("llava", str(tmp_path / "none.json"), str(tmp_path / "none")).open(
            TEMPLATES["plain"]
        )
    with pytest.raises(InputError, match="no records"):
        opened(tmp_path, [])
    with pytest.raises(InputError, match="jsonl source"):
        opened(tmp_path, {})
