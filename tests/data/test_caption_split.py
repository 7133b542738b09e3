"""Held out by caption: nothing that is held out is met in training, and who is held out depends on the captions alone."""

import json
import pickle
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.data.examples import Text
from mmjax.data.sources.caption_split import CaptionKey, normalised, split_by_caption
from mmjax.data.sources.jsonl import JsonlSource
from mmjax.data.text.templates import TEMPLATES
from mmjax.errors import InputError

# Few of each, so that captions and images are often equal, and several spellings of the same caption.
captions = st.sampled_from(
    ["A frog.", "a frog", "A  FROG!", "frog", "two frogs", "Ice-cream", "ice cream", "?", None]
)
images = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", None])
examples = st.lists(st.tuples(captions, images), min_size=1, max_size=30)
distinct = st.lists(st.text("abc ", min_size=1), min_size=2, max_size=30, unique_by=normalised)


def split(examples, holdout):
    lines = [CaptionKey.of(*example) for example in examples]
    return [split_by_caption(lines, holdout, part, "x").tolist() for part in ("train", "holdout")]


def split_or_none(examples, holdout):
    try:
        return split(examples, holdout)
    except InputError:
        return None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Knight’s  helmet.", "a knight s helmet"),
        ("Ice-cream\t(cold)!", "ice cream cold"),
        ("2 € + 1 $", "2 € + 1 $"),
        ("ﬁre STRASSE Straße", "fire strasse strasse"),
        ("…", ""),
    ],
)
def test_normalised(text, expected):
    assert normalised(text) == expected


@given(examples, st.integers(1, 29))
def test_no_caption_and_no_image_is_in_both_parts(examples, holdout):
    if (parts := split_or_none(examples, holdout)) is None:
        return
    train, held = parts
    assert sorted(train + held) == list(range(len(examples))), (
        "every example is in exactly one part"
    )
    assert train == sorted(train) and train and 0 < len(held) <= holdout
    for kind in (0, 1):
        values = [[examples[index][kind] for index in part] for part in parts]
        seen = [
            {normalised(value) if kind == 0 else value for value in some if value is not None}
            for some in values
        ]
        assert seen[0].isdisjoint(seen[1])


@given(examples, st.integers(1, 29))
def test_no_group_that_would_still_fit_is_left_in_training(examples, holdout):
    captions = [(caption, None) for caption, _ in examples]
    if (parts := split_or_none(captions, holdout)) is None:
        return
    train, held = parts
    left = [normalised(captions[index][0]) for index in train if captions[index][0] is not None]
    assert all(left.count(caption) > holdout - len(held) for caption in left)


@given(distinct, st.data())
def test_of_distinct_captions_exactly_so_many_are_held_out(texts, data):
    holdout = data.draw(st.integers(0, len(texts) - 1))
    train, held = split([(text, None) for text in texts], holdout)
    assert (len(train), len(held)) == (len(texts) - holdout, holdout)


@given(examples, st.integers(1, 29), st.randoms())
def test_the_order_of_the_lines_changes_nothing_but_the_order(examples, holdout, generator):
    order = list(range(len(examples)))
    generator.shuffle(order)
    parts, shuffled = (
        split_or_none(examples, holdout),
        split_or_none([examples[index] for index in order], holdout),
    )
    assert (parts is None) == (shuffled is None)
    if parts is not None:
        assert [sorted(part) for part in parts] == [
            sorted(order[index] for index in part) for part in shuffled
        ]


@given(distinct, st.text("xyz", min_size=1))
def test_one_more_caption_exchanges_one_at_most(texts, more):
    """Who is held out is drawn for each caption by itself: what else is in the file hardly matters."""
    holdout = len(texts) // 2
    before, after = (
        set(split([(text, None) for text in some], holdout)[1]) for some in (texts, [*texts, more])
    )
    assert len(before - after) <= 1


def test_captions_and_images_tie_examples_together():
    examples = [
        ("A frog.", "a"),
        ("a toad", "a"),
        ("A toad!", "b"),
        (None, "b"),
        ("bird", "c"),
        (None, None),
    ]
    assert split(examples, 4) in ([[4, 5], [0, 1, 2, 3]], [[0, 1, 2, 3, 5], [4]]), (
        "the four stay together"
    )
    assert split(examples, 5) == [[5], split(examples, 5)[1]], (
        "both groups; what has no caption is trained on"
    )


def test_the_first_held_out_are_no_special_ones():
    """In the order of the digests: a limit takes a sample."""
    _, held = split([(f"caption {index}", None) for index in range(1000)], 400)
    assert held != sorted(held)
    assert 250 < np.mean(held[:100]) < 750


def test_what_cannot_be_split():
    for examples in ([("a", None)] * 3, [(None, "a")] * 3):
        with pytest.raises(InputError, match="x cannot be split by its captions"):
            split(examples, 2)
    for holdout in (3, -1):
        with pytest.raises(InputError, match="holdout must be less than the"):
            split([("a", None), ("b", None), ("c", None)], holdout)
    assert split([("a", None)] * 3, 0) == [[0, 1, 2], []]


RECORDS = [
    {"image": f"{index}.png", "text": f"caption {index // 2}{'!' * (index % 2)}"}
    for index in range(20)
]


@pytest.fixture
def source(tmp_path):
    def opened(records, holdout, part="train", holdout_by="caption"):
        lines = [
            record if isinstance(record, bytes) else json.dumps(record).encode()
            for record in records
        ]
        (tmp_path / "data.jsonl").write_bytes(b"\n".join(lines))
        config = JsonlSource(
            "jsonl", str(tmp_path / "data.jsonl"), str(tmp_path), holdout_by=holdout_by
        )
        return config.open(TEMPLATES["plain"], holdout=holdout, part=part)

    return opened


def texts(source):
    return [
        segment.text
        for index in range(len(source))
        for segment in source[index].segments()
        if isinstance(segment, Text)
    ]


def test_a_jsonl_source_splits_by_caption(source):
    train, held = texts(source(RECORDS, 7)), texts(source(RECORDS, 7, "holdout"))
    assert len(held) == 6 and sorted(train + held) == sorted(record["text"] for record in RECORDS)
    assert {normalised(text) for text in train}.isdisjoint(map(normalised, held))
    assert texts(source(RECORDS, 7, "holdout", "position")) == [
        record["text"] for record in RECORDS[-7:]
    ]
    assert texts(source(RECORDS, 0)) == [record["text"] for record in RECORDS]


def test_examples_keep_their_names_in_any_process(source):
    held = source(RECORDS, 7, "holdout")
    again = pickle.loads(pickle.dumps(held))
    names = [held[index].id for index in range(len(held))]
    assert [again[index].id for index in range(len(again))] == names
    expected = texts(held)
    assert [
        RECORDS[int(name.removeprefix("data.jsonl:")) - 1]["text"] for name in names
    ] == expected
    shuffled = random.Random(0).sample(RECORDS, len(RECORDS))
    assert sorted(texts(source(shuffled, 7, "holdout"))) == sorted(expected)


def test_damaged_lines_stay_in_training_for_the_loader_to_count(source):
    damaged = [
        b"{",
        b'{"text": 3}',
        b'{"image": 3, "text": "same"}',
        b'{"text": " "}',
        b'{"text": "same"}',
        b'{"text": "other"}',
    ]
    assert texts(source(damaged, 1, "holdout")) == ["other"], (
        "the two with equal captions are more than one"
    )
    assert len(source(damaged, 1)) == 5
    assert len(source(damaged, 5)) == 3, "of the others none has a caption"


def test_captioned(source):
    opened = source(
        [
            {"image": "a.png", "text": "x", "questions": [["q", "a"]]},
            {"text": "x"},
            {"image": "a.png", "questions": []},
        ],
        0,
    )
    path, text = opened.captioned(0)
    assert (path.name, text) == ("a.png", "x")
    assert opened.captioned(1) is None and opened.captioned(2) is None
