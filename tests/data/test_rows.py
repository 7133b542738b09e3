"""Packed rows: layout, targets, order, and what happens to unusable samples."""

import pickle
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from mmjax.data.examples import Example, Image, SampleError, Special, Text
from mmjax.data.packing.layout import Row, stack
from mmjax.data.packing.packing import Mixture
from mmjax.data.packing.rows import Rows, make_rows
from mmjax.data.sources.jsonl import JsonlSource
from mmjax.data.text.tokenizer import SegmentTokenizer
from mmjax.errors import InputError
from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.linear import LinearConfig
from mmjax.recipe.recipe import DataConfig
from mmjax.typing import NO_IMAGE, NO_TARGET

QUIET = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
VISUAL_TOKENS, TEXT_LENGTH, IMAGES = 3, 16, 2
LENGTH = TEXT_LENGTH + IMAGES * VISUAL_TOKENS


def same(one: Row, other: Row) -> bool:
    return all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        for field in fields(Row)
    )


def spelled(segments, tokenizer) -> tuple[list[int], list[bool]]:
    """Tokens of some segments and which of them carry loss, written out token by token."""
    tokens, loss = [], []
    for segment in segments:
        if isinstance(segment, Image):
            ids, supervised = [tokenizer.image] * VISUAL_TOKENS, False
        elif isinstance(segment, Special):
            ids, supervised = [tokenizer.special(segment.name)], segment.loss
        else:
            ids, supervised = tokenizer.encode(segment.text), segment.loss
        tokens += ids
        loss += [supervised] * len(ids)
    if not loss or loss[-1] or tokens[-1] == tokenizer.image:
        return tokens, loss
    return tokens[:-1], loss[
        :-1
    ]  # nothing follows the last token, so without loss it has no place in a row


def read(row: Row, segment: int) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Tokens of a segment and which carry loss, as the row has them: a target stands for the token after its position."""
    tokens, targets = (
        row.tokens[row.segment_ids == segment].tolist(),
        row.targets[row.segment_ids == segment].tolist(),
    )
    loss = [False] + [target != NO_TARGET for target in targets]
    for place, target in enumerate(targets[:-1]):
        assert target in (NO_TARGET, tokens[place + 1]), (
            "a target is not the next token of its own segment"
        )
    if targets[-1] != NO_TARGET:
        tokens.append(targets[-1])
    return tuple(tokens), tuple(loss[: len(tokens)])


def planned(rows: Rows, row: Row) -> Counter:
    """The continuations in a row, each with its prefix."""
    found: Counter = Counter()
    for segment in range(1, row.segment_ids.max() + 1):
        (prefix,) = set(row.prefix_segment_ids[row.segment_ids == segment].tolist())
        if segment not in row.prefix_segment_ids:
            found[(read(row, prefix) if prefix else None, read(row, segment))] += 1
    return found


def expected(examples, tokenizer) -> Counter:
    found: Counter = Counter()
    for example in examples:
        prefix = spelled(example.prefix, tokenizer)
        for continuation in example.continuations:
            tokens, loss = spelled(continuation, tokenizer)
            if (
                any(loss) and len(tokens) <= TEXT_LENGTH
            ):  # conversations with images are short enough, see the strategy
                found[
                    (
                        (tuple(prefix[0]), tuple(prefix[1])) if prefix[0] else None,
                        (tuple(tokens), tuple(loss)),
                    )
                ] += 1
    return found


@QUIET
@given(data=st.data())
def test_a_pass_holds_every_continuation_once_with_its_own_targets(
    data, example_lists, pack, tokenizer
):
    examples = [
        example
        for example in data.draw(example_lists)
        if len(spelled(example.continuations[0], tokenizer)[0]) <= TEXT_LENGTH
    ]
    continuations = expected(examples, tokenizer)
    assume(continuations)
    rows = pack({"set": examples})
    for epoch in range(2):
        found: Counter = Counter()
        for index in range(epoch * len(rows), (epoch + 1) * len(rows)):
            found += planned(rows, rows[index])
        assert found == continuations


@QUIET
@given(data=st.data(), train=st.booleans())
def test_layout(data, train, example_lists, pack, tokenizer):
    try:
        rows = pack({"set": data.draw(example_lists)}, train=train, flip=train)
    except InputError:
        assume(False)
    for index in range(len(rows)):
        row = rows[index]
        filled = row.segment_ids > 0
        assert row.tokens.shape == (LENGTH,) and row.images.shape == (IMAGES, 4, 4, 3)
        assert np.all(np.diff(np.where(filled, row.segment_ids, LENGTH)) >= 0), (
            "segments out of order, or padding between them"
        )
        assert set(row.segment_ids[filled]) == set(range(1, row.segment_ids.max() + 1))
        assert np.all(row.tokens[~filled] == tokenizer.pad) and np.all(
            row.targets[~filled] == NO_TARGET
        )
        visual = row.visual_embedding_index != NO_IMAGE
        assert np.array_equal(row.visual_embedding_index[visual], np.arange(visual.sum()))
        assert np.all(row.tokens[visual] == tokenizer.image) and not np.any(
            row.tokens[~visual] == tokenizer.image
        )
        assert row.image_mask.sum() * VISUAL_TOKENS == visual.sum()
        for segment in range(1, row.segment_ids.max() + 1):
            where = row.segment_ids == segment
            (prefix,) = set(row.prefix_segment_ids[where].tolist())
            assert 0 <= prefix < segment
            start = (row.segment_ids == prefix).sum() if prefix else 0
            assert np.array_equal(row.positions[where], start + np.arange(where.sum()))
            assert not row.prefix_segment_ids[row.segment_ids == prefix].any() if prefix else True


def test_no_visual_token_has_a_target_unless_a_span_begins_behind_it(pack, image, tokenizer):
    inside = Example((), ((Text(" w1"), image(1), Text(" w2 w3", loss=True)),), "caption")
    shared = Example((image(2),), ((Special("bos"), Text(" w4", loss=True)),), "question")
    rows = pack({"set": [inside, shared]}, train=False)
    row = rows[0]
    w2, w3, w4 = (tokenizer.encode(text)[0] for text in (" w2", " w3", " w4"))
    assert row.targets.tolist()[:9] == [-1, -1, -1, w2, w3, -1, -1, -1, w4]
    assert np.all(row.targets[9:] == NO_TARGET)


def test_rows_depend_on_seed_and_index_alone(pack, image, question):
    examples = [
        Example((image(n),), tuple(question(2, 1, first=n + k) for k in range(5)), str(n))
        for n in range(9)
    ]
    rows, again, other = (pack({"set": examples}, flip=True, seed=seed) for seed in (3, 3, 4))
    indices = [*range(3 * len(rows)), 10**12]
    forward = [rows[index] for index in indices]
    assert all(
        same(again[index], row)
        for index, row in zip(reversed(indices), reversed(forward), strict=True)
    )
    assert not all(same(other[index], row) for index, row in zip(indices, forward, strict=True))


def test_every_pass_has_its_own_order_of_rows_and_of_continuations(pack, image, question):
    examples = [
        Example((image(n),), tuple(question(2, 1, first=n + k) for k in range(5)), str(n))
        for n in range(40)
    ]
    rows = pack({"set": examples}, text_length=20, images_per_row=1)
    passes = [
        [rows.sample_ids(epoch * len(rows) + place)[0] for place in range(len(rows))]
        for epoch in range(2)
    ]
    assert len(rows) == 40 and sorted(passes[0]) == sorted(passes[1]) and passes[0] != passes[1]
    unchanged = 0
    for name in passes[0]:
        one, two = (
            rows[epoch * 40 + order.index(name)].tokens for epoch, order in enumerate(passes)
        )
        assert sorted(one) == sorted(two)
        unchanged += np.array_equal(one, two)
    assert unchanged <= 4, (
        "five continuations have 120 orders: two of forty rows with the same one would be chance"
    )


def test_sample_ids_follow_the_row(pack, image, question):
    examples = [Example((image(n),), (question(2, 1),), str(n)) for n in range(6)]
    rows = pack({"set": examples})
    for index in range(6):
        colors = rows[index].images[:, 0, 0, 0][rows[index].image_mask].tolist()
        assert rows.sample_ids(index) == [str(color) for color in colors]


def test_held_out_rows_are_one_pass_in_order(pack, question, image):
    lists = {
        name: [Example((image(n),), (question(3, 1),), f"{name}{n}") for n in range(5)]
        for name in "ab"
    }
    rows = pack(lists, text_length=8, images_per_row=1, train=False)
    assert len(rows) == 10 and not rows.endless
    assert [rows.sample_ids(index)[0] for index in range(10)] == [
        f"{name}{n}" for name in "ab" for n in range(5)
    ]
    with pytest.raises(IndexError):
        rows[10]


def test_flip_mirrors_about_half_of_the_images(pack, question):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    examples = [Example((Image(pixels),), (question(3, 1),), str(n)) for n in range(100)]
    for flip, least, most in [(True, 30, 70), (False, 0, 0)]:
        rows = pack({"set": examples}, text_length=8, images_per_row=1, flip=flip)
        images = [rows[index].images[0] for index in range(100)]
        mirrored = sum(np.array_equal(image, pixels[:, ::-1]) for image in images)
        assert sum(np.array_equal(image, pixels) for image in images) == 100 - mirrored
        assert least <= mirrored <= most


def test_another_source_changes_no_row_of_the_first(pack, image, question):
    lists = {
        name: [Example((image(n),), (question(n, 2),), f"{name}{n}") for n in range(5)]
        for name in ("one", "two")
    }
    alone, mixed = pack({"one": lists["one"]}, flip=True), pack(lists, weights=[1, 2], flip=True)
    mixture = Mixture([1, 2])
    sources = [mixture.locate(index) for index in range(60)]
    assert all(
        same(mixed[index], alone[place])
        for index, (source, place) in enumerate(sources)
        if source == 0
    )
    assert all(
        mixed.sample_ids(index)[0].startswith(("one", "two")[source])
        for index, (source, _) in enumerate(sources)
    )


def test_a_corrupt_image_masks_its_slot_and_all_text_that_depends_on_it(
    pack, image, question, tokenizer
):
    good, bad = (
        Example((image(9),), (question(2, 1, 0),), "good"),
        Example((image(-1),), (question(2, 1, 5), question(1, 1, 9)), "bad"),
    )
    rows = pack({"set": [bad, good]}, train=False)
    row = rows[0]
    assert (
        row.image_mask.tolist() == [False, True]
        and not row.images[0].any()
        and np.all(row.images[1] == 9)
    )
    assert row.segment_ids.max() == 5, "the row keeps its layout"
    assert np.all(row.targets[row.segment_ids <= 3] == NO_TARGET)
    assert np.count_nonzero(row.targets[row.segment_ids == 5] != NO_TARGET) == 2
    assert rows.skipped == {"corrupt image": 2} and rows.skips.total.seen == 3
    assert rows.skip_examples["corrupt image"].startswith("bad: 8 bytes: ")


def test_in_a_conversation_text_before_a_corrupt_image_still_counts(pack, image, question):
    turns = (*question(1, 1, 0), image(-1), *question(1, 1, 5), image(4))
    rows = pack({"set": [Example((), (turns,), "talk")]}, train=False)
    row = rows[0]
    assert np.flatnonzero(row.targets != NO_TARGET).tolist() == [1, 2], (
        "w1 and the end of the first answer"
    )
    assert row.image_mask.tolist() == [False, True]
    assert rows.skipped == {"corrupt image": 1} and rows.skip_examples["corrupt image"].startswith(
        "talk: "
    )


def test_a_record_that_breaks_after_planning_leaves_padding(pack, question, in_memory):
    examples = [Example((), (question(1, 1, n),), str(n)) for n in range(2)]
    rows = pack({"set": examples}, train=False)
    rows._sources[0]._source[0] = SampleError("bad JSON")
    row = rows[0]
    assert row.segment_ids.max() == 1 and rows.skipped == {"bad JSON": 1}
    assert rows.sample_ids(0) == ["set[0]", "1"]


def test_the_first_skipped_sample_of_each_cause_is_kept_with_its_reason(pack, image, question):
    long = [Example((), (question(30, 1),), f"long/{number}") for number in range(2)]
    corrupt = [Example((image(-1),), (question(1, 1),), f"corrupt/{number}") for number in range(3)]
    rows = pack(
        {
            "first": [*long, *corrupt, Example((), (question(),), "good")],
            "second": [SampleError("bad JSON"), *corrupt],
        },
        train=False,
    )
    planned = str(rows.statistics())
    assert "skipped: longer than text_length: 2, bad JSON: 1, such as\n" in planned
    assert "\n  bad JSON: second[0]" in planned and "long/0" in planned
    for index in range(len(rows)):
        rows[index]
    assert rows.skipped == {"longer than text_length": 2, "bad JSON": 1, "corrupt image": 6}
    assert rows.skip_examples["longer than text_length"] == "long/0, continuation 0, with 32 tokens"
    assert (
        rows.skip_examples["corrupt image"].startswith("corrupt/0: ")
        and rows.skip_examples["bad JSON"] == "second[0]"
    )
    again = pack({"first": [Example((), (question(),), "good")]}, train=False)
    again.skips.restore(rows.skips.state())
    assert again.skips.examples == rows.skips.examples and again.skips.total.causes == {
        "corrupt image": 6
    }


def test_a_record_that_grows_after_planning_is_refused(pack, question):
    rows = pack({"set": [Example((), (question(1, 1),), "0")]}, train=False)
    rows._sources[0]._source[0] = Example((), (question(20, 20),), "0")
    with pytest.raises(InputError, match="changed while the run was reading"):
        rows[0]


def test_text_alone(pack, question):
    rows = pack({"set": [Example((), (question(2, 2),), "text")]})
    row = rows[0]
    assert (
        not row.image_mask.any()
        and not row.images.any()
        and np.all(row.visual_embedding_index == NO_IMAGE)
    )
    assert pack({"set": [Example((), (question(2, 2),), "text")]}, images_per_row=0)[
        0
    ].images.shape == (0, 4, 4, 3)


def test_statistics_agree_with_the_rows(pack, image, question):
    lists = {
        "images": [
            Example((image(n),), tuple(question(n % 4, 1 + k, k) for k in range(4)), str(n))
            for n in range(7)
        ],
        "texts": [Example((), (question(3, n % 3 + 1),), str(n)) for n in range(7)],
    }
    rows = pack(lists, weights=[1, 3])
    for name, statistics in rows.statistics().sources.items():
        alone = pack({name: lists[name]})
        batch = stack([alone[index] for index in range(len(alone))])
        visual = batch.visual_embedding_index != NO_IMAGE
        assert statistics.rows == len(alone)
        assert statistics.samples == sum(len(example.continuations) for example in lists[name])
        assert statistics.fill == pytest.approx((batch.segment_ids > 0).mean())
        assert statistics.text_fill == pytest.approx(
            ((batch.segment_ids > 0) & ~visual).sum() / (len(alone) * TEXT_LENGTH)
        )
        assert statistics.image_fill == pytest.approx(batch.image_mask.mean())
        assert statistics.supervised == pytest.approx(
            (batch.targets != NO_TARGET).sum() / len(alone)
        )
    total = rows.statistics()
    one, three = total.sources.values()
    assert total.supervised == pytest.approx(one.supervised / 4 + three.supervised * 3 / 4)
    assert total.rows == len(rows) and "supervised tokens per row" in str(total)


def test_pieces_are_tokenised_once(tokenizer, question, image):
    class Counting:
        calls = 0

        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def encode(self, text):
            self.calls += 1
            return tokenizer.encode(text)

    counting = Counting()
    segment_tokenizer = SegmentTokenizer(counting, VISUAL_TOKENS)
    for _ in range(5):
        segment_tokenizer.continuation(question(2, 1))
    assert counting.calls == 2


MODEL = VLMConfig(
    ViTConfig(8, 4, 8, 1, 1, 8), LinearConfig("linear", (1,)), DecoderConfig(600, 8, 1, 1, 1, 8, 8)
)


@pytest.fixture
def data(tmp_path):
    (tmp_path / "set.jsonl").write_text('{"text": " w1 w2"}\n' * 10)
    source = JsonlSource("jsonl", str(tmp_path / "set.jsonl"), str(tmp_path))
    return DataConfig({"set": source}, text_length=20, holdout=2)


def test_make_rows(data, tokenizer):
    train, holdout = (
        make_rows(data, MODEL, tokenizer, 0),
        make_rows(data, MODEL, tokenizer, 0, "holdout"),
    )
    assert train.endless and train.statistics().samples == 8
    assert not holdout.endless and holdout.statistics().samples == 2
    assert train[0].tokens.shape == (20 + 4,) and train[0].images.shape == (1, 8, 8, 3)


@pytest.mark.parametrize(("resize", "colours"), [("stretch", {0, 255}), ("crop", {255})])
def test_images_are_fitted_as_the_config_says(data, tokenizer, tmp_path, resize, colours):
    """White in the middle of a wide black image."""
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 255
    Pillow.fromarray(pixels).save(tmp_path / "wide.png")
    (tmp_path / "set.jsonl").write_text('{"image": "wide.png", "text": " w1 w2"}\n')
    row = make_rows(replace(data, holdout=0, resize=resize), MODEL, tokenizer, 0)[0]
    assert (
        row.image_mask.all()
        and {int(value) for value in row.images[0, :, [0, 4, 7]].flat} == colours
    )


def test_sources_share_the_memory_for_images(data, tokenizer, tmp_path):
    """Here, and in a worker process, which gets a copy: thirty sources need no more than one."""
    Pillow.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "set.jsonl").write_text('{"image": "a.png", "text": " w1 w2"}\n')
    (source,) = data.sources.values()
    rows = make_rows(
        replace(data, holdout=0, sources={"one": source, "two": source}), MODEL, tokenizer, 0
    )
    for each in (rows, pickle.loads(pickle.dumps(rows))):
        assert each[0].image_mask.all() and each[1].image_mask.all()
        first, second = (source._images for source in each._sources)
        assert first is second and len(first._images) == 1


def test_make_rows_refuses(data, tokenizer):
    with pytest.raises(InputError, match="seed"):
        make_rows(data, MODEL, tokenizer, -1)
    with pytest.raises(InputError, match="holdout is 0"):
        make_rows(replace(data, holdout=0), MODEL, tokenizer, 0, "holdout")
    with pytest.raises(InputError, match="at least one"):
        make_rows(replace(data, sources={}), MODEL, tokenizer, 0)
    with pytest.raises(InputError, match=r"'set' has no token.*longer than text_length: 8"):
        make_rows(replace(data, text_length=2), MODEL, tokenizer, 0)
