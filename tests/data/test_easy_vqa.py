"""The easy-vqa source against counts made of the package's files."""

import importlib.util
from collections import Counter

import pytest

from mmjax.data.examples import Image, SampleError, Text
from mmjax.data.images.decode import load_image
from mmjax.data.sources.easy_vqa import (
    COLORS,
    SHAPES,
    EasyVqaSource,
    compose_caption,
    question_type,
)
from mmjax.data.text.templates import TEMPLATES, Plain
from mmjax.errors import InputError
from mmjax.evaluation.tasks import easy_vqa
from mmjax.recipe.recipe import DataConfig

pytest.importorskip("easy_vqa")


def opened(split="train", tasks=("question",), template="plain", **options):
    config = EasyVqaSource("easy_vqa", tasks=tasks, split=split)
    return config.open(TEMPLATES[template], **options)


@pytest.fixture(scope="module", params=["train", "test"])
def split(request):
    return request.param


@pytest.mark.parametrize(
    ("split", "images", "questions", "types"),
    [
        ("train", 4000, 38575, {"yes_no": 28407, "shape": 5002, "color": 5166}),
        ("test", 1000, 9673, {"yes_no": 7136, "shape": 1257, "color": 1280}),
    ],
)
def test_every_official_question_is_there_once_and_has_its_type(split, images, questions, types):
    source = opened(split)
    pairs = [pair for index in range(len(source)) for pair in source.questions(index)]
    assert (len(source), len(pairs)) == (images, questions)
    assert Counter(question_type(answer) for _, answer in pairs) == types


@pytest.mark.parametrize(
    ("split", "expected"), [("train", (3837, 3712, 3578, 29)), ("test", (954, 922, 888, 12))]
)
def test_captions_say_what_the_questions_determine(split, expected):
    source = opened(split)
    words = [set((source.caption(index) or "").split()) for index in range(len(source))]
    shape, color = [bool(word & SHAPES) for word in words], [bool(word & COLORS) for word in words]
    both = sum(s and c for s, c in zip(shape, color, strict=True))
    assert (sum(shape), sum(color), both, words.count(set())) == expected


def test_no_question_contradicts_its_caption(split):
    """Answers every yes/no and wh-question from the caption alone, by another way than elimination."""
    source = opened(split)
    for index in range(len(source)):
        known = (source.caption(index) or "").split()
        for question, answer in source.questions(index):
            words = question.rstrip("?").split()
            kinds = [kind for kind in (SHAPES, COLORS) if set(known) & kind]
            if question_type(answer) != "yes_no":
                assert answer in known, (known, question, answer)
                continue
            for kind in kinds:
                if asked := set(words) & kind:
                    there = bool(asked & set(known))
                    assert answer == (
                        "yes" if there != ("not" in words or "no" in words) else "no"
                    ), (known, question, answer)


@pytest.mark.parametrize(
    ("pairs", "caption"),
    [
        ((("is there a red shape?", "no"),), None),
        ((("is there not a circle?", "no"),), "a circle"),
        ((("is no red shape present?", "no"),), "a red shape"),
        ((("what is the teal shape?", "triangle"),), "a teal triangle"),
        (
            (
                ("what color is the shape?", "blue"),
                ("is there a circle?", "no"),
                ("is no triangle present?", "yes"),
            ),
            "a blue rectangle",
        ),
        (
            tuple((f"is there a {color} shape?", "no") for color in sorted(COLORS - {"gray"})),
            "a gray shape",
        ),
    ],
)
def test_elimination(pairs, caption):
    assert compose_caption(pairs) == caption


def test_captions_agree_with_the_pixels():
    """The mean colour of what is not background is nearest to the one that the caption names."""
    reference = {
        "red": (1, 0, 0),
        "green": (0, 1, 0),
        "blue": (0, 0, 1),
        "black": (0, 0, 0),
        "yellow": (1, 1, 0),
        "teal": (0, 0.5, 0.5),
    }
    source = opened("test")
    seen = wrong = 0
    for index in range(0, 200):
        named = set((source.caption(index) or "").split()) & reference.keys()
        if not named:
            continue
        flat = load_image(source.image_path(index), 64).reshape(-1, 3)
        dark = flat[flat.min(1) < 150]  # the background is pale
        color = dark.mean(0) / 255
        nearest = min(reference, key=lambda name: sum((color - reference[name]) ** 2))
        seen, wrong = seen + 1, wrong + (nearest not in named)
    assert seen > 100 and wrong == 0


def test_an_example_has_its_image_first_then_caption_and_questions_in_file_order():
    source = opened("test", ("caption", "question"))
    example = source[0]
    assert example.id == "easy_vqa/test/0" and isinstance(example.prefix[0], Image)
    texts = [
        "".join(part.text for part in continuation if isinstance(part, Text))
        for continuation in example.continuations
    ]
    assert texts == [
        source.caption(0),
        *(f"{question} {answer}" for question, answer in source.questions(0)),
    ]


def test_a_image_that_nothing_is_known_of_keeps_its_questions_and_has_no_caption():
    source = opened("train", ("caption", "question"))
    silent = [index for index in range(len(source)) if source.caption(index) is None]
    assert len(source) == 4000 and len(source[silent[0]].continuations) == len(
        source.questions(silent[0])
    )
    captions = opened("train", ("caption",))
    assert len(captions) == 4000 - 29 and all(
        len(captions[index].continuations) == 1 for index in range(len(captions))
    )


@pytest.mark.parametrize("tasks", [("question",), ("caption",), ("caption", "question")])
def test_the_holdout_is_the_last_images_whatever_the_task(tasks):
    parts = {part: opened("train", tasks, holdout=300, part=part) for part in ("train", "holdout")}
    numbers = {
        part: [int(source[index].id.split("/")[-1]) for index in range(len(source))]
        for part, source in parts.items()
    }
    assert max(numbers["train"]) < 3700 <= min(numbers["holdout"])
    assert len(parts["train"]) + len(parts["holdout"]) == len(opened("train", tasks))


def test_the_files_are_in_random_order_so_the_last_images_are_a_fair_holdout():
    source = opened("train", holdout=400, part="holdout")
    for kind in (SHAPES, COLORS):
        counts = Counter(
            word
            for index in range(len(source))
            for word in (source.caption(index) or "").split()
            if word in kind
        )
        expected = sum(counts.values()) / len(kind)
        assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_texts_are_what_the_examples_hold():
    source = opened("test", ("caption", "question"), holdout=990)
    texts = list(source.texts())
    assert texts == [
        part.text
        for index in range(10)
        for part in source[index].segments()
        if isinstance(part, Text)
    ]


def test_templates_reach_the_examples():
    assert any(
        "Short answer:" in text
        for text in opened("test", template="short_prompt", holdout=999).texts()
    )


def test_wrong_tasks_holdouts_and_indices():
    for tasks in ((), ("answer",)):
        with pytest.raises(InputError, match="caption and question"):
            opened(tasks=tasks)
    for holdout in (-1, 4000):
        with pytest.raises(InputError, match="holdout"):
            opened(holdout=holdout)
    with pytest.raises(IndexError):
        opened()[4000]
    with pytest.raises(ValueError, match="purple"):
        question_type("purple")


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install mmjax\[demo\]"):
        opened()


class Refusing(Plain):
    """A template that cannot write some questions."""

    def question(self, question, answer):
        if "red" in question:
            raise SampleError("refused by the chat template", "no red")
        return super().question(question, answer)


def test_a_question_that_the_template_refuses_spoils_its_image_alone():
    source = EasyVqaSource("easy_vqa").open(Refusing(), holdout=3900)
    found = {}
    for index in range(len(source)):
        asks = any("red" in question for question, _ in source.questions(index))
        try:
            found[asks] = source[index].id
        except SampleError as error:
            assert asks and error.detail.startswith("easy_vqa/train/"), error
            found[asks] = error.detail
    assert found[True].endswith(": no red") and found[False].startswith("easy_vqa/train/")
    with pytest.raises(InputError, match=r"cannot be asked: .*no red"):
        ask_all(Refusing())


def ask_all(template):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(easy_vqa, "find_template", lambda *_: template)
        return easy_vqa.TASK.images(DataConfig({}, 8), "test")
