"""The JSONL source: captions and questions beside a folder, damaged lines, and indexed records."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from mmjax.data.examples import SampleError, Text
from mmjax.data.images.decode import load_image
from mmjax.data.sources.jsonl import JsonlSource
from mmjax.data.sources.readers import open_lines, open_list
from mmjax.data.text.templates import TEMPLATES
from mmjax.errors import InputError

RECORDS = [
    {"image": "a.png", "text": "a red circle"},
    {"image": "a.png", "questions": [["what?", "circle"], ["red?", "yes"]]},
    {"text": "no image here"},
    {"image": "a.png", "text": "Grüße", "questions": [["wer?", "ich"]]},
]


@pytest.fixture
def folder(tmp_path):
    Pillow.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    return tmp_path


def opened(folder, lines, template="plain", **options):
    data = b"\n".join(
        line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode()
        for line in lines
    )
    (folder / "data.jsonl").write_bytes(data)
    config = JsonlSource("jsonl", path=str(folder / "data.jsonl"), image_dir=str(folder))
    return config.open(TEMPLATES[template], **options)


def texts(example):
    return [
        [part.text for part in continuation if isinstance(part, Text)]
        for continuation in example.continuations
    ]


def test_images_are_looked_for_beside_the_file_unless_a_folder_is_named(folder):
    opened(folder, RECORDS)
    source = JsonlSource("jsonl", path=str(folder / "data.jsonl")).open(TEMPLATES["plain"])
    assert source[0].prefix[0].source == folder / "a.png"


def test_captions_questions_and_samples_without_a_image(folder):
    source = opened(folder, RECORDS)
    assert len(source) == 4 and [source[index].id for index in range(4)] == [
        f"data.jsonl:{row}" for row in range(1, 5)
    ]
    assert [texts(source[index]) for index in range(4)] == [
        [["a red circle"]],
        [["what?", " circle"], ["red?", " yes"]],
        [["no image here"]],
        [["Grüße"], ["wer?", " ich"]],
    ]
    assert [len(source[index].prefix) for index in range(4)] == [1, 1, 0, 1]
    assert load_image(source[0].prefix[0].source, 4).shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (b'{"text": "a \xff b"}', "bad UTF-8"),
        (rb'{"text": "a \ud83d b"}', "bad UTF-8"),
        (b'{"text": "a', "bad JSON"),
        (b'["text"]', "bad JSON"),
        (b"[" * 100_000, "bad JSON"),
        ({"image": "a.png"}, "no text"),
        ({"image": "a.png", "questions": []}, "no text"),
        ({"text": 3}, "bad text"),
        ({"text": "  "}, "bad text"),
        ({"image": 3, "text": "a"}, "bad image"),
        ({"questions": ["what?"]}, "bad questions"),
        ({"questions": "what?"}, "bad questions"),
        ({"questions": [["what?", None]]}, "bad answer"),
    ],
)
def test_a_damaged_line_names_its_cause_and_spoils_no_other(folder, line, cause):
    source = opened(folder, [RECORDS[0], line, RECORDS[2]])
    with pytest.raises(SampleError) as error:
        source[1]
    assert error.value.cause == cause
    assert texts(source[0]) == [["a red circle"]] and texts(source[2]) == [["no image here"]]
    assert list(source.texts()) == ["a red circle", "no image here"]


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ({"video": "clip.mp4"}, "media that are not read"),
        ({"file_name": "a.png"}, "media that are not read"),
        ({"shown": "clip.MP4"}, "media that are not read"),
        ({"image": "a.png", "audio": "a.wav"}, "media that are not read"),
        ({"text": "<video> a red bus"}, "media that are not read"),
        ({"questions": [["<image>\nwhat?", "a bus"]]}, "media that are not read"),
        ({"conversations": [{"from": "human"}]}, "key that is not read"),
        ({"question": "what?", "answer": "a bus"}, "key that is not read"),
        ({"weight": 0}, "no supervised token"),
        ({"loss": False}, "no supervised token"),
        ({"weight": 0.5}, "weight that is neither 0 nor 1"),
    ],
)
def test_a_line_that_says_more_than_is_read_is_unusable(folder, said, cause):
    with pytest.raises(SampleError, match=r"data\.jsonl:1: ") as error:
        opened(folder, [{"text": "a bus"} | said])[0]
    assert error.value.cause == cause


def test_other_keys_of_a_line_are_left_alone(folder):
    others = {"url": "https://example.org/a.jpg", "licence": "CC0", "file_name": "b.jpg"}
    source = opened(folder, [{"image": "a.png", "text": "a bus", "weight": 1} | others])
    assert texts(source[0]) == [["a bus"]]
    assert texts(opened(folder, [{"text": "a bus", "path": "a.txt", "video": None}])[0]) == [
        ["a bus"]
    ]


def test_a_line_of_a_conversation_says_which_source_reads_it(folder):
    line = {"conversations": [{"from": "human", "value": "what?"}]}
    with pytest.raises(SampleError, match=r"no text: .*of the kind llava"):
        opened(folder, [line])[0]


def test_a_list_is_read_as_lines_are(folder):
    source = opened(folder, [json.dumps(RECORDS, indent=1).encode()])
    assert len(source) == 4 and texts(source[2]) == [["no image here"]]


def test_an_escaped_surrogate_pair_is_good_text(folder):
    assert texts(opened(folder, [rb'{"text": "a \ud83d\ude00"}'])[0]) == [["a 😀"]]


def test_a_missing_image_is_met_when_it_is_loaded(folder):
    source = opened(folder, [{"image": "b.png", "text": "a"}])
    with pytest.raises(SampleError, match="missing image"):
        load_image(source[0].prefix[0].source, 4)


def test_what_is_missing_at_opening_is_an_input_error(folder):
    with pytest.raises(InputError, match=r"nowhere\.jsonl cannot be read"):
        JsonlSource("jsonl", str(folder / "nowhere.jsonl"), str(folder)).open(TEMPLATES["plain"])
    with pytest.raises(InputError, match="image_dir: there is no folder"):
        JsonlSource("jsonl", str(folder / "data.jsonl"), str(folder / "nowhere")).open(
            TEMPLATES["plain"]
        )
    with pytest.raises(InputError, match="no records"):
        opened(folder, [b"", b"  "])


def test_holdout_is_the_end_of_the_file(folder):
    rows = {part: opened(folder, RECORDS, holdout=1, part=part) for part in ("train", "holdout")}
    assert [rows["train"][index].id[-1] for index in range(3)] == ["1", "2", "3"] and len(
        rows["train"]
    ) == 3
    assert rows["holdout"][0].id == "data.jsonl:4" and len(rows["holdout"]) == 1


def test_a_source_works_after_pickling(folder):
    source = pickle.loads(pickle.dumps(opened(folder, RECORDS)))
    assert texts(source[3]) == [["Grüße"], ["wer?", " ich"]]


values = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
records = st.lists(st.dictionaries(st.text(), values), min_size=1, max_size=5)


@settings(max_examples=30)
@given(
    records, st.sampled_from([None, 1, "\t"]), st.booleans(), st.sampled_from(["", "\ufeff", "\n "])
)
def test_records_of_a_list_are_found_by_their_bytes(
    tmp_path_factory, expected, indent, ascii_only, before
):
    path = tmp_path_factory.mktemp("list") / "data.json"
    path.write_bytes(
        (before + json.dumps(expected, indent=indent, ensure_ascii=ascii_only)).encode()
    )
    found = open_list(path)
    assert [found[index] for index in range(len(found))] == expected


@settings(max_examples=30)
@given(records, st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_records_of_lines_are_found_by_their_bytes(tmp_path_factory, expected, ascii_only, between):
    path = tmp_path_factory.mktemp("lines") / "data.jsonl"
    path.write_bytes(
        between.join(json.dumps(record, ensure_ascii=ascii_only) for record in expected).encode()
    )
    found = open_lines(path)
    assert [found[index] for index in range(len(found))] == expected


@pytest.mark.parametrize(
    "data", [b"{}", b"", b"[{}", b"[{} {}]", b"[{},", b"[{},]", b"nonsense", b"[" * 100_000]
)
def test_what_is_no_json_list_is_an_input_error(tmp_path, data):
    (tmp_path / "data.json").write_bytes(data)
    with pytest.raises(InputError, match=r"data\.json"):
        open_list(tmp_path / "data.json")
