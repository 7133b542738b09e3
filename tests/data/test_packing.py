"""The packing plan."""

import hashlib
import os
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmjax.config.load import load
from mmjax.data.examples import Example, Image, SampleError, Special, Text
from mmjax.data.packing import packing
from mmjax.data.packing.packing import RowCapacity, first_fit, make_plan
from mmjax.data.packing.rows import make_rows
from mmjax.data.text.tokenizer import SegmentTokenizer
from mmjax.data.text.vocabulary import make_tokenizer
from mmjax.errors import InputError
from tests.golden import update as golden

QUIET = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
LIMIT = RowCapacity(text=12, images=2)


@pytest.fixture(scope="session")
def plan_of(segment_tokenizer, in_memory):
    def make(examples, limit=LIMIT, seed=(0,), skip_budget=1.0):
        return make_plan(
            in_memory(examples),
            segment_tokenizer,
            limit,
            name="set",
            seed=seed,
            skip_budget=skip_budget,
        )

    return make


def size(segments, tokenizer, *, continuation: bool) -> tuple[int, int]:
    """(text tokens, images) of a prefix or a continuation, by counting. The last token of a continuation is a target only."""
    texts = sum(
        len(tokenizer.encode(s.text)) if isinstance(s, Text) else isinstance(s, Special)
        for s in segments
    )
    return texts - continuation, sum(isinstance(segment, Image) for segment in segments)


def learns(segments) -> bool:
    return any(not isinstance(segment, Image) and segment.loss for segment in segments)


@QUIET
@given(data=st.data())
def test_every_usable_continuation_is_planned_once_and_rows_have_room(
    data, example_lists, plan_of, tokenizer
):
    examples = data.draw(example_lists)
    usable, total = set(), 0
    for index, example in enumerate(examples):
        prefix = size(example.prefix, tokenizer, continuation=False)
        for number, continuation in enumerate(example.continuations):
            total += 1
            text, images = size(continuation, tokenizer, continuation=True)
            if (
                learns(continuation)
                and prefix[0] + text <= LIMIT.text
                and prefix[1] + images <= LIMIT.images
            ):
                usable.add((index, number))
    if not usable:
        return
    plan = plan_of(examples)
    planned: Counter[tuple[int, int]] = Counter()
    for row in range(len(plan)):
        filled = np.zeros(2, int)
        for example, numbers in plan.units(row):
            planned.update((example, number) for number in numbers)
            filled += size(examples[example].prefix, tokenizer, continuation=False)
            filled += np.sum(
                [
                    size(examples[example].continuations[number], tokenizer, continuation=True)
                    for number in numbers
                ],
                axis=0,
            )
        assert plan.units(row), "an empty row"
        assert filled[0] <= LIMIT.text and filled[1] <= LIMIT.images
    assert planned == dict.fromkeys(usable, 1)
    assert plan.report.seen == total and plan.report.skipped == total - len(usable)


@QUIET
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 2)), min_size=1, max_size=60),
    st.sampled_from([2, 512]),
)
def test_first_fit(sizes, open_rows):
    """With room for all open rows it is the plain first-fit; with two open rows, it still keeps to the limit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "OPEN_ROWS", open_rows)
        rows = first_fit(np.array(sizes), LIMIT)
    filled: list[np.ndarray] = []
    for unit, row in zip(sizes, rows, strict=True):
        fitting = [
            number
            for number, used in enumerate(filled)
            if (used + unit <= (LIMIT.text, LIMIT.images)).all()
        ]
        if open_rows == 512:
            assert row == (fitting[0] if fitting else len(filled))
        if row == len(filled):
            filled.append(np.zeros(2, int))
        filled[row] = filled[row] + unit
    assert all((used <= (LIMIT.text, LIMIT.images)).all() for used in filled)


def test_more_continuations_than_a_row_holds_repeat_the_prefix(plan_of, image, question):
    """A continuation of 2 + 1 words takes 4 tokens, three fill a row of 12, and one image allows no second unit."""
    plan = plan_of([Example((image(),), (question(),) * 7, "many")], RowCapacity(12, 1), seed=None)
    assert [plan.units(row) for row in range(len(plan))] == [
        [(0, [0, 1, 2])],
        [(0, [3, 4, 5])],
        [(0, [6])],
    ]
    assert (plan.text, plan.images, plan.supervised) == (7 * 4, 3, 7 * 2)


def test_the_seed_decides_the_order(plan_of, image, question):
    examples = [
        Example((image(),), (question(number % 5 + 1),), str(number)) for number in range(30)
    ]
    first, same, other = (plan_of(examples, seed=(seed,)) for seed in (1, 1, 2))
    assert first.examples.tolist() == same.examples.tolist() != other.examples.tolist()
    in_order = [plan_of(examples, RowCapacity(8, 1), seed=None).units(row) for row in range(30)]
    assert in_order == [[(number, [0])] for number in range(30)]


def test_what_cannot_be_used_is_counted_by_cause(plan_of, image, question):
    examples = [
        Example((image(),), (question(), question(30), question(2, 0)), "a"),
        SampleError("bad JSON", "line 7"),
        Example((image(),) * 3, (question(), question()), "b"),
        Example((image(),), (), "c"),
    ]
    report = plan_of(examples).report
    assert report.seen == 7
    assert report.causes == {
        "longer than text_length": 1,
        "no supervised token": 2,
        "bad JSON": 1,
        "more images than images_per_row": 2,
    }


def test_images_are_looked_for_and_not_opened(plan_of, question, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"what is in it is seen later")
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("opened"))
    a, b, pipe = (Image(tmp_path / name) for name in ("a.png", "b.png", "pipe.png"))
    examples = [
        Example((a,), (question(),) * 2, "there"),
        Example((b,), (question(),) * 3, "gone"),
        Example(
            (), ((a, *question()), (a, b, *question()), (Image(str(b.source)), *question())), "talk"
        ),
        Example((pipe,), (question(),), "pipe"),
        Example((b,), (), "silent"),
    ]
    plan = plan_of(examples)
    assert plan.report.seen == 10
    assert plan.report.causes == {"missing image": 6, "image that is no regular file": 1}
    assert plan.report.examples == {
        "missing image": f"gone: {b.source}",
        "image that is no regular file": f"pipe: {pipe.source}",
    }
    assert sorted(units_of(plan)) == [(0, [0, 1]), (2, [0])]


def test_a_folder_without_the_images_is_refused_whatever_the_budget(plan_of, question, tmp_path):
    examples = [
        Example((Image(tmp_path / f"{number}.png"),), (question(),), str(number))
        for number in range(8)
    ]
    with pytest.raises(
        InputError, match=r"(?s)of 8 samples none .*missing image: 8.*  missing image: 0: .*0\.png$"
    ):
        plan_of(examples, skip_budget=1.0)
    with pytest.raises(InputError, match=r"missing image: 8.*skip_budget=0.5"):
        plan_of([*examples, Example((), (question(),), "text")], skip_budget=0.5)


def test_a_text_that_the_tokenizer_refuses_spoils_its_own_sample(tokenizer, in_memory, question):
    class Picky:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def encode(self, text):
            if "w9" in text:
                raise InputError("it cannot encode w9")
            if "w8" in text:
                raise RecursionError("maximum recursion depth exceeded")
            return tokenizer.encode(text)

    plan = make_plan(
        in_memory([Example((), tuple(question(1, 1, first) for first in (0, 7, 9)), "asked")]),
        SegmentTokenizer(Picky(), 3),
        LIMIT,
        name="set",
        seed=None,
        skip_budget=1.0,
    )
    assert plan.report.causes == {"text that cannot be tokenised": 2}
    assert plan.report.examples["text that cannot be tokenised"].startswith("asked, continuation 1")
    assert units_of(plan) == [(0, [0])]


def test_a_million_images_are_too_many_before_they_are_tokens(plan_of, question, image):
    many = Example((), ((image(),) * 1_000_000 + question(),), "many")
    report = plan_of([many, Example((), (question(),), "good")]).report
    assert report.causes == {"more images than images_per_row": 1}


@pytest.mark.parametrize(("budget", "refused"), [(0.2, False), (0.19, True)])
def test_the_budget(plan_of, question, budget, refused):
    examples = [Example((), (question(),), str(number)) for number in range(8)] + [
        SampleError("bad UTF-8", line) for line in ("line 7", "line 9")
    ]
    if not refused:
        assert len(plan_of(examples, skip_budget=budget))
        return
    with pytest.raises(
        InputError,
        match=r"(?s)'set'.* 2 of 10 samples .*bad UTF-8: 2.*skip_budget=0.19.*  bad UTF-8: line 7$",
    ):
        plan_of(examples, skip_budget=budget)


def test_a_source_that_teaches_nothing_is_refused_with_an_example(plan_of, image, question):
    examples = [SampleError("bad JSON"), Example((image(),), (question(3, 0),), "silent/1")]
    with pytest.raises(InputError, match=r"'set' has no token to learn from.*silent/1.* w0 w1 w2"):
        plan_of(examples)


def test_repeated_continuations_stand_in_every_unit(plan_of, image, question):
    continuations = (question(1, 1), *(question(2, 1, first=3 * number) for number in range(5)))
    plan = plan_of([Example((image(),), continuations, "a", repeated=1)])
    units = [numbers for row in range(len(plan)) for _, numbers in plan.units(row)]
    assert sorted(number for numbers in units for number in numbers[1:]) == [1, 2, 3, 4, 5]
    assert len(units) > 1 and all(numbers[0] == 0 for numbers in units)
    assert plan.supervised == 2 * (5 + len(units))


def units_of(plan) -> list[tuple[int, list[int]]]:
    """In the order in which they were made, for plans without a seed in which no unit shares a row."""
    return [unit for row in range(len(plan)) for unit in plan.units(row)]


def test_what_fits_a_row_but_not_beside_the_repeated_continuation_stands_without_it(
    plan_of, image, question
):
    """The caption takes 4 tokens of 12. A question of 10 fits alone only, as does one of 6 after it; one of 13 fits nowhere."""
    lengths = {0: 4, 1: 5, 2: 10, 3: 5, 4: 9, 5: 13, 6: 3}
    continuations = tuple(
        question(length - 2, 1, first=5 * number) for number, length in lengths.items()
    )
    plan = plan_of(
        [Example((image(),), continuations, "a", repeated=1)], RowCapacity(12, 1), seed=None
    )
    assert units_of(plan) == [(0, [0, 1]), (0, [0, 3, 6]), (0, [2]), (0, [4])]
    assert plan.report.causes == {"longer than text_length": 1} and plan.report.examples.keys() == {
        "longer than text_length"
    }
    assert plan.text == 2 * 4 + 5 + 5 + 3 + 10 + 9
    assert plan.supervised == 2 * 7


def test_continuations_without_room_beside_a_repeated_one_share_a_row(plan_of, question):
    """None of the four has room beside the caption of 9 tokens; nor has the second continuation that should be repeated."""
    continuations = tuple(question(length - 2, 1) for length in (9, 6, 4, 4, 4))
    plan = plan_of([Example((), continuations, "a", repeated=2)], RowCapacity(12, 1), seed=None)
    assert sorted(units_of(plan)) == [(0, [0]), (0, [1, 2]), (0, [3, 4])]
    assert not plan.report.skipped


@QUIET
@given(lengths=st.lists(st.integers(3, 8), min_size=1, max_size=9), repeated=st.integers(0, 1))
def test_where_all_fit_beside_the_repeated_continuation_units_are_filled_in_order(
    lengths, repeated, plan_of, question
):
    """RowCapacity for 12; the repeated continuation takes 4 at most."""
    lengths = [min(lengths[0], 4), *lengths[1:]]
    expected: list[list[int]] = [[]]
    for number, length in enumerate(lengths):
        if sum(lengths[other] for other in expected[-1]) + length > 12:
            expected.append([*range(repeated)])
        expected[-1].append(number)
    continuations = tuple(
        question(length - 2, 1, first=number) for number, length in enumerate(lengths)
    )
    units = units_of(
        plan_of([Example((), continuations, "a", repeated=repeated)], RowCapacity(12, 0), seed=None)
    )
    assert sorted(units) == sorted((0, numbers) for numbers in expected)


@pytest.mark.parametrize(
    ("stage", "expected"), [("pretrain", "69076a1d6e232ac0"), ("finetune", "7a05dd2d388e6cc5")]
)
def test_the_rows_of_the_default_recipe_stay_what_they_are(stage, expected):
    """Published results were trained on them: another packing would be another experiment."""
    pytest.importorskip("easy_vqa")
    recipe = load(str(golden.CONFIG))
    stage = recipe.stages[stage]
    rows = make_rows(stage.data, stage.model, make_tokenizer(recipe), seed=0)
    plan = rows._sources[0].plan
    arrays = (plan.rows, plan.examples, plan.continuations, plan.numbers)
    assert (
        hashlib.sha256(b"".join(array.astype(np.int64).tobytes() for array in arrays)).hexdigest()[
            :16
        ]
        == expected
    )
