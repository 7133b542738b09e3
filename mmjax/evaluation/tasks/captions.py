"""Held-out captions: what the model writes of their images, by CIDEr-D, and how likely it finds what people wrote.

The stage's jsonl sources hold them out: as many as `holdout` says, and with `holdout_by="caption"` so that none of them is met in training.
There is no other split: "test" means the same.
"""

import collections
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmjax.data.examples import (
    CAPTION_PROMPT,
    Continuation,
    Example,
    Image,
    SampleError,
    Template,
    Text,
    prompt_of,
)
from mmjax.data.sources.base import Part
from mmjax.data.sources.caption_split import normalised
from mmjax.data.sources.jsonl import Jsonl
from mmjax.data.text.templates import TEMPLATES, find_template
from mmjax.data.text.tokenizer import Tokenizer
from mmjax.errors import InputError
from mmjax.evaluation.likelihood import CaptionLikelihood
from mmjax.evaluation.scores import METRIC, cider_d, mean_scores
from mmjax.evaluation.tasks.base import EvaluatedModel, ImageQuestions, Question, Scores, Split
from mmjax.recipe.recipe import DataConfig, EvaluationConfig, JsonlSource, Recipe


class CaptionsTask:
    """Images with held-out captions; the type of a caption is the name of its source."""

    name = "captions"

    def problems(self, recipe: Recipe) -> Iterator[str]:
        """No captions to score, or captions that were trained on; see `Task`."""
        *earlier, last = recipe.stages.values()
        if not _configs(last.data):
            yield (
                f"config.evaluation.tasks has {self.name!r}, but the last stage, {last.name}, has no jsonl source, and captions "
                "come from no other."
            )
        elif last.data.holdout == 0:
            yield (
                f"config.evaluation.tasks has {self.name!r}, but config.stages.{last.name}.data.holdout is 0: no captions are held out to "
                "score it on."
            )
        held = {
            source.path: (last.data.holdout, source.holdout_by)
            for source in _configs(last.data).values()
            if source.path
        }
        for stage in earlier:
            for name, source in _configs(stage.data).items():
                if held.get(source.path, (stage.data.holdout, source.holdout_by)) != (
                    stage.data.holdout,
                    source.holdout_by,
                ):
                    yield (
                        f"config.stages.{stage.name}.data.sources.{name} reads the same file as stage {last.name}, on whose held-out "
                        f"captions {self.name!r} scores it, but holds out others: holdout and holdout_by must be equal in both."
                    )

    def images(
        self, data: DataConfig, split: Split, tokenizer: Tokenizer | None = None
    ) -> Sequence[ImageQuestions]:
        """The images with all of their held-out captions, source by source; see `Task`. Unusable examples are left out: the loader, which
        reads them for the held-out loss, counts them."""
        template = find_template(data.template, tokenizer)
        kinds: dict[Path, tuple[str, str]] = {}
        captions: dict[Path, list[str]] = {}
        for kind, path, caption, name in _captioned(data, template, "holdout"):
            kinds.setdefault(path, (kind, name))
            captions.setdefault(path, []).append(caption)
        if not captions:
            raise InputError(
                f"{self.name}: no jsonl source of the stage holds out an image with a caption (holdout is {data.holdout})."
            )
        return [_image(template, path, texts, *kinds[path]) for path, texts in captions.items()]

    def answer_tokens(self, settings: EvaluationConfig) -> int:
        """See `Task`."""
        return settings.max_caption_tokens

    def question_only_baseline(
        self, data: DataConfig, split: Split, questions: Sequence[Question]
    ) -> list[str]:
        """To each image the most frequent training caption, in its most frequent spelling; of equally frequent ones, the first."""
        spellings: dict[str, collections.Counter[str]] = collections.defaultdict(
            collections.Counter
        )
        for _, _, caption, _ in _captioned(data, TEMPLATES["plain"], "train"):
            spellings[normalised(caption)][caption] += 1
        most = max(
            spellings.values(), key=lambda counts: counts.total(), default=collections.Counter([""])
        )
        return [most.most_common(1)[0][0]] * len(questions)

    def score(self, questions: Sequence[Question], answers: Sequence[str]) -> Scores:
        """CIDEr-D beside all captions of the image; how rare words are, all of the questions together say."""
        return mean_scores(questions, cider_d(answers, [question.truths for question in questions]))

    def details(
        self, evaluated: EvaluatedModel, images: Sequence[ImageQuestions]
    ) -> dict[str, Any]:
        """See `Task`.

        Returns:
            "metric": of the score. "reference_score": what the first true captions score as answers: short ones are far from 10.
            "nll": nats per token of the true captions; "nll_per_caption": per caption; "nll_shuffled": per token, beside images of other
            captions, which changes nothing for a model that does not look, or None where all captions are the same.
        """
        template = find_template(evaluated.stage.data.template, evaluated.tokenizer)
        questions = [question for image in images for question in image.questions]
        likelihood = CaptionLikelihood(
            evaluated,
            [[template.caption(text) for text in question.truths] for question in questions],
        )
        shown = [image.image for image in images]
        own, others = likelihood.compute(shown), other_images(questions)
        shuffled = likelihood.compute([shown[index] for index in others]) if others else None
        return {
            "metric": METRIC,
            "reference_score": self.score(
                questions, [question.truth for question in questions]
            ).score,
            "nll": own.nats / own.tokens,
            "nll_shuffled": shuffled.nats / shuffled.tokens if shuffled else None,
            "nll_per_caption": own.nats / own.captions,
        }


def other_images(questions: Sequence[Question]) -> list[int] | None:
    """For each question the next one, in a circle, whose image has none of its captions; None if for some there is no such image.

    Neighbours often have the same caption, and then the neighbour's image is not a wrong one."""
    captions = [frozenset(map(normalised, question.truths)) for question in questions]
    others = []
    for index, own in enumerate(captions):
        circle = (*range(index + 1, len(captions)), *range(index))
        other = next((place for place in circle if own.isdisjoint(captions[place])), None)
        if other is None:
            return None
        others.append(other)
    return others


def _configs(data: DataConfig) -> dict[str, JsonlSource]:
    return {
        name: source for name, source in data.sources.items() if isinstance(source, JsonlSource)
    }


def _captioned(
    data: DataConfig, template: Template, part: Part
) -> Iterator[tuple[str, Path, str, str]]:
    """(name of the source, path of the image, caption, name of the example) of every usable example with both."""
    for kind, config in _configs(data).items():
        source = Jsonl(config, template, holdout=data.holdout, part=part)
        for index in range(len(source)):
            try:
                if (found := source.captioned(index)) is not None:
                    yield kind, *found, source[index].id
            except SampleError:
                continue


def _image(
    template: Template, path: Path, captions: Sequence[str], kind: str, name: str
) -> ImageQuestions:
    prompt = prompt_of(template.caption(captions[0]))
    question = Question(_asked(prompt), captions[0], kind, tuple(captions[1:]))
    return ImageQuestions(Example((Image(path),), (prompt,), name), str(path), (question,))


def _asked(prompt: Continuation) -> str:
    """What a prompt asks in words; nothing, where the template writes captions alone."""
    asks = any(isinstance(segment, Text) and CAPTION_PROMPT in segment.text for segment in prompt)
    return CAPTION_PROMPT if asks else ""
