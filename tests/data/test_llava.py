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
    with pytest.raises(InputError, match="something follows the bracket"):
        opened(tmp_path, b"[{}] [{}]")


def test_a_conversation_a_line_is_read_too(tmp_path):
    records = [
        {"id": number, "conversations": [human("what?"), gpt(f"{number} é")]} for number in range(3)
    ]
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    for data in (lines.encode(), f"\n{lines}\n".encode(), lines.encode("utf-8-sig")):
        source = opened(tmp_path, data)
        assert [without_specials(source[index])[1] for index in range(len(source))] == [
            " 0 é",
            " 1 é",
            " 2 é",
        ]


def learned(example):
    """The texts that carry loss, and how often a special token does."""
    parts = [part for part in example.continuations[0] if not isinstance(part, Image) and part.loss]
    texts = [part.text for part in parts if isinstance(part, Text)]
    return texts, len(parts) - len(texts)


@pytest.mark.parametrize("key", ["weight", "loss", "train"])
@pytest.mark.parametrize("template", ["plain", "vicuna_v1", "llama3"])
@pytest.mark.parametrize(("no", "yes"), [(0, 1), (False, True), (0.0, None)])
def test_a_turn_with_a_weight_of_0_carries_no_loss(tmp_path, key, template, no, yes):
    turns = [human("2+2?"), gpt("5") | {key: no}, human("Sure?"), gpt("4") | {key: yes}]
    example = only(tmp_path, {"conversations": turns}, template=template)
    texts, ends = learned(example)
    assert [text.strip() for text in texts] == ["4"] and ends == 1
    plain = [{name: turn[name] for name in ("from", "value")} for turn in turns]
    whole = only(tmp_path, {"conversations": plain}, template=template)
    assert learned(whole)[1] == 2

    def written(example):
        parts = example.continuations[0]
        return "".join(f"<{p.name}>" if isinstance(p, Special) else p.text for p in parts)

    assert written(example) == written(whole)


@pytest.mark.parametrize(
    ("turn", "cause"),
    [
        (gpt("4") | {"weight": 0.5}, "weight that is neither 0 nor 1"),
        (gpt("4") | {"loss_scale": 2}, "weight that is neither 0 nor 1"),
        (gpt("4") | {"train_detail": [{"begin_offset": 0}]}, "weight that is neither 0 nor 1"),
        (gpt("4") | {"tool_calls": [{"name": "f"}]}, "key that is not read"),
        (gpt("4") | {"image": "a.png"}, "media that are not read"),
    ],
)
def test_a_turn_that_says_more_than_is_read_is_unusable(tmp_path, turn, cause):
    with pytest.raises(SampleError, match=r"data\.json/x: ") as error:
        only(tmp_path, {"id": "x", "conversations": [human("2+2?"), turn]})
    assert error.value.cause == cause


def test_loss_on_what_the_user_says_is_refused_but_a_weight_of_1_is_the_usual_one(tmp_path):
    for key in ("loss", "train"):
        with pytest.raises(SampleError, match="loss where the assistant does not speak"):
            only(tmp_path, {"conversations": [human("2+2?") | {key: True}, gpt("4")]})
    turns = [human("2+2?") | {"weight": 1, "loss": False}, gpt("4") | {"weight": 1, "loss": True}]
    assert learned(only(tmp_path, {"conversations": turns})) == ([" 4"], 1)


def test_a_record_with_a_weight_of_0_teaches_nothing(tmp_path):
    with pytest.raises(SampleError, match="no supervised token"):
        only(tmp_path, {"weight": 0, "conversations": [human("2+2?"), gpt("5")]})


@pytest.mark.parametrize(
    "said",
    [
        {"video": "clip.mp4"},
        {"videos": ["clip.mp4"]},
        {"audio": "a.wav"},
        {"audio_path": "a.wav"},
        {"images": ["a.png"]},
        {"Video": "clip.mp4"},
        {"point_cloud": "a.npy"},
        {"shown": "clip.mp4"},
        {"file_name": "a.png"},
        {"photo": ["a.JPEG", "b.jpeg"]},
    ],
)
def test_media_under_other_keys_make_a_record_unusable(tmp_path, said):
    record = {"id": "v", **said, "conversations": [human("What colour is the bus?"), gpt("Red.")]}
    with pytest.raises(SampleError, match=r"data\.json/v: ") as error:
        only(tmp_path, record)
    assert error.value.cause == "media that are not read"


@pytest.mark.parametrize(
    "mark",
    ["<video>", "<audio>", "<image_1>", "<|image_1|>", "<img>", "<|video_pad|>", "<ImageHere>"],
)
@pytest.mark.parametrize("image", [None, "a.png"])
def test_marks_of_what_is_not_read_make_a_record_unusable(tmp_path, mark, image):
    text = f"{'<image>' if image else ''}{mark}\nWhat colour is the bus?"
    with pytest.raises(SampleError, match="media that are not read"):
        only(tmp_path, {"image": image, "conversations": [human(text), gpt("Red.")]})


@pytest.mark.parametrize(
    "said",
    [
        {"system": "Answer in French."},
        {"tools": [{"name": "f"}]},
        {"rejected": "Blue."},
        {"kto_tag": False},
    ],
)
def test_keys_that_change_what_a_record_means_make_it_unusable(tmp_path, said):
    with pytest.raises(SampleError, match="key that is not read"):
        only(tmp_path, {**said, "conversations": [human("What colour?"), gpt("Red.")]})


def test_other_keys_are_left_alone(tmp_path):
    others = {
        "model": "gpt-4",
        "category": "detail",
        "file_name": "b.jpg",
        "url": "https://example.org/b.jpg",
        "video": None,
        "audio": "",
        "images": [],
        "sound": False,
        "width": 640,
        "weight": 1,
    }
    record = {"id": "x", "image": "a.png", "conversations": [human("<image>what?"), gpt("red")]}
    assert without_specials(only(tmp_path, record | others)) == ["a.png", "what?", " red"]
