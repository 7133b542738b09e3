"""The easy-vqa questions, and what can be answered without the image."""

import pytest

from mmjax.data.examples import Image, Special, Text
from mmjax.data.images.decode import load_image
from mmjax.data.sources.easy_vqa import EasyVqaSource
from mmjax.errors import InputError
from mmjax.evaluation.scores import exact_match
from mmjax.evaluation.tasks.base import Question
from mmjax.evaluation.tasks.easy_vqa import EasyVqaTask, QuestionOnlyAnswers
from mmjax.recipe.recipe import DataConfig

DATA = DataConfig({"easy_vqa": EasyVqaSource("easy_vqa")}, 80, holdout=200)
TASK = EasyVqaTask()


def test_all_official_test_questions() -> None:
    images = TASK.images(DATA, "test")
    questions = [question for image in images for question in image.questions]
    counts = {
        kind: sum(question.kind == kind for question in questions)
        for kind in ("yes_no", "shape", "color")
    }
    assert len(images) == 1000
    assert counts == {"yes_no": 7136, "shape": 1257, "color": 1280}
    assert all(len(image.example.continuations) == len(image.questions) for image in images)


def test_a_prompt_ends_where_the_answer_begins() -> None:
    image = TASK.images(DATA, "test")[0]
    assert image.example.prefix == (image.image,) and isinstance(image.image, Image)
    assert image.example.continuations[0] == (Special("bos"), Text(image.questions[0].text))
    assert load_image(image.path, 64).shape == (64, 64, 3)


def test_holdout_is_what_training_leaves_out() -> None:
    held_out = TASK.images(DATA, "holdout")
    assert len(held_out) == 200
    assert {image.example.id.split("/")[1] for image in held_out} == {"train"}
    with pytest.raises(InputError, match="holdout is 0"):
        TASK.images(DataConfig(DATA.sources, 80), "holdout")


def test_question_only_baseline() -> None:
    # Counted once by hand on the files of easy-vqa 1.0: the most frequent training answer to each exact question text.
    questions = [question for image in TASK.images(DATA, "test") for question in image.questions]
    scores = exact_match(questions, TASK.question_only_baseline(DATA, "test", questions))
    assert scores.score == pytest.approx(0.6700, abs=5e-5)
    assert {kind: round(share, 3) for kind, share in scores.by_type.items()} == {
        "color": 0.120,
        "shape": 0.348,
        "yes_no": 0.825,
    }
    assert scores.n == 9673


def test_question_only_baseline_never_learns_from_what_it_is_scored_on() -> None:
    questions = [question for image in TASK.images(DATA, "holdout") for question in image.questions]
    everything = DataConfig(DATA.sources, 80, holdout=3999)  # one image is left to learn from
    answers = TASK.question_only_baseline(everything, "holdout", questions)
    assert len(set(answers)) < 8
    assert len(set(TASK.question_only_baseline(everything, "test", questions))) > 8, (
        "the test split is scored with all training images"
    )


def test_question_only_answers() -> None:
    question_only = QuestionOnlyAnswers(
        [
            ("a?", "yes"),
            ("a?", "no"),
            ("a?", "no"),
            ("b?", "yes"),
            ("b?", "yes"),
            ("c?", "red"),
            ("c?", "blue"),
        ]
    )
    asked = [Question(text, "", "x") for text in ("a?", "b?", "c?", "new?")]
    assert question_only.answer(asked) == ["no", "yes", "red", "yes"]


def test_exact_match() -> None:
    questions = [
        Question("", "yes", "yes_no"),
        Question("", "no", "yes_no"),
        Question("", "red", "color"),
    ]
    scores = exact_match(questions, ["yes", "yes", "Red"])
    assert (scores.score, scores.by_type, scores.n_by_type, scores.n) == (
        1 / 3,
        {"color": 0.0, "yes_no": 0.5},
        {"color": 1, "yes_no": 2},
        3,
    )
    with pytest.raises(ValueError):
        exact_match(questions, ["yes"])
