"""The questions of easy-vqa: 9,673 about 1,000 test images, scored by exact match of the whole answer."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

from mmjax.data.examples import Example, Image, SampleError
from mmjax.data.sources.easy_vqa import EasyVqaSource, question_type
from mmjax.data.text.templates import TEMPLATES, find_template
from mmjax.data.text.tokenizer import Tokenizer
from mmjax.errors import InputError
from mmjax.evaluation.scores import exact_match
from mmjax.evaluation.tasks.base import ImageQuestions, Question, Scores, Split, Task
from mmjax.recipe.recipe import DataConfig

QUESTIONS = EasyVqaSource("easy_vqa", ("question",), "train")


class EasyVqaTask(Task):
    """The official test split, or the held-out training images."""

    name = "easy_vqa"

    def images(
        self, data: DataConfig, split: Split, tokenizer: Tokenizer | None = None
    ) -> Sequence[ImageQuestions]:
        """All images of a split; see `Task`."""
        template = find_template(data.template, tokenizer)
        if split == "holdout":
            if not data.holdout:
                raise InputError("easy_vqa has no held-out images to score: holdout is 0.")
            source = QUESTIONS.open(template, holdout=data.holdout, part="holdout")
        else:
            source = dataclasses.replace(QUESTIONS, split="test").open(template)
        images = []
        for index in range(len(source)):
            pairs = source.questions(index)
            path = source.image_path(index)
            try:
                prompts = tuple(template.prompt(question) for question, _ in pairs)
                example = Example((Image(path),), prompts, source[index].id)
            except SampleError as error:
                raise InputError(f"The questions about {path} cannot be asked: {error}.") from None
            questions = tuple(Question(text, right, question_type(right)) for text, right in pairs)
            images.append(ImageQuestions(example, str(path), questions))
        return images

    def question_only_baseline(
        self, data: DataConfig, split: Split, questions: Sequence[Question]
    ) -> list[str]:
        """To each question the most frequent training answer to exactly this text, and to a new one the most frequent answer of all.

        Of equally frequent answers, the one that comes first in the training file.
        """
        holdout = data.holdout if split == "holdout" else 0
        source = QUESTIONS.open(TEMPLATES["plain"], holdout=holdout)
        return QuestionOnlyAnswers(
            pair for index in range(len(source)) for pair in source.questions(index)
        ).answer(questions)

    def score(self, questions: Sequence[Question], answers: Sequence[str]) -> Scores:
        """Exact match of the whole answer."""
        return exact_match(questions, answers)


class QuestionOnlyAnswers:
    """The most frequent answer to each question text."""

    def __init__(self, pairs: Iterable[tuple[str, str]]):
        """pairs: (question, answer) of the training data."""
        counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for text, answer in pairs:
            counts[text][answer] += 1
        total = sum(counts.values(), start=collections.Counter[str]())
        self._answers = {text: of_text.most_common(1)[0][0] for text, of_text in counts.items()}
        self._most_frequent = total.most_common(1)[0][0]

    def answer(self, questions: Sequence[Question]) -> list[str]:
        """One answer to each question."""
        return [self._answers.get(question.text, self._most_frequent) for question in questions]


TASK = EasyVqaTask()
