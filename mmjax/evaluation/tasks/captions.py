"""Held-out captions: what the model writes of their images, by CIDEr-D, and how likely it finds what people wrote.

The stage's sources of captions hold them out: as many as `holdout` says, and with `holdout_by="caption"` so that none of them is met in
training. There is no other split: "test" means the same.
"""

import collections
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmjax.data.examples import (
    CAPTION_PROMPT,
    Example,
    Image,
    SampleError,
    Template,
    Text,
    prompt_of,
)
from mmjax.data.sources.base import Part, SourceConfig
from mmjax.data.sources.caption_split import normalised
from mmjax.data.text.templates import TEMPLATES, find_template
from mmjax.data.text.tokenizer import Tokenizer
from mmjax.errors import InputError
from mmjax.evaluation.likelihood import CaptionLikelihood
from mmjax.evaluation.scores import METRIC, cider_d, mean_scores
from mmjax.evaluation.tasks.base import (
    EvaluatedModel,
    ImageQuestions,
    Question,
    Scores,
    Split,
    Task,
)
from mmjax.recipe.recipe import DataConfig, EvaluationConfig, Recipe


class CaptionsTask(Task):
    """Images with held-out captions; the type of a caption is the name of its source."""

    name = "captions"

    def problems(self, recipe: Recipe) -> Iterator[str]:
        """No captions to score, or captions that were trained on; see `Task`."""
        *earlier, last = recipe.stages.values()
        scored = _sources(last.data)
        if not scored:
            kinds = [name for name, kind in SourceConfig.kinds().items() if kind.captions]
            yield (
                f"config.evaluation.tasks has {self.name!r}, but the last stage, {last.name}, has no source whose captions can be scored "
                f"({', '.join(kinds)})."
            )
        elif last.data.holdout == 0:
            yield (
                f"config.evaluation.tasks has {self.name!r}, but config.stages.{last.name}.data.holdout is 0: no captions are held out to "
                "score it on."
            )
        held = {
            source.reads: (last.data.holdout, source.holdout_by)
            for source in scored.values()
            if source.reads
        }
        for stage in earlier:
            for name, source in _sources(stage.data).items():
                own = (stage.data.holdout, source.holdout_by)
                if held.get(source.reads, own) != own:
                    yield (
                        f"config.stages.{stage.name}.data.sources.{name} reads the same file as stage {last.name}, on whose held-out "
                        f"captions {self.name!r} scores it, but holds out others: holdout and holdout_by must be equal in both."
                    )

    def images(
        self, data: DataConfig, split: Split, tokenizer: Tokenizer | None = None
    ) -> Sequence[ImageQuestions]:
        """The images with all of their held-out captions, source by source; see `Task`. Unusable examples are skipped: the loader, which
        reads them for the held-out loss, counts them."""
        template = find_template(data.template, tokenizer)
        first: dict[
            Path, tuple[str, str]
        ] = {}  # the source and the example that an image is met in
        captions: dict[Path, list[str]] = {}
        for source, path, caption, name in _captions(data, template, "holdout"):
            first.setdefault(path, (source, name))
            captions.setdefault(path, []).append(caption)
        if not captions:
            raise InputError(
                f"{self.name}: no source of the stage holds out an image with a caption (holdout is {data.holdout})."
            )
        found = []
        for path, (reference, *others) in captions.items():
            source, name = first[path]
            prompt = prompt_of(template.caption(reference))
            asks = any(
                isinstance(segment, Text) and CAPTION_PROMPT in segment.text for segment in prompt
            )
            # Some templates ask for nothing, but write captions alone.
            text = CAPTION_PROMPT if asks else ""
            example = Example((Image(path),), (prompt,), name)
            question = Question(text, reference, source, tuple(others))
            found.append(ImageQuestions(example, str(path), (question,)))
        return found

    def answer_tokens(self, settings: EvaluationConfig) -> int:
        return settings.max_caption_tokens

    def question_only_baseline(
        self, data: DataConfig, split: Split, questions: Sequence[Question]
    ) -> list[str]:
        """To each image the most frequent training caption, in its most frequent spelling; of equally frequent ones, the first."""
        spellings: dict[str, collections.Counter[str]] = collections.defaultdict(
            collections.Counter
        )
        for _, _, caption, _ in _captions(data, TEMPLATES["plain"], "train"):
            spellings[normalised(caption)][caption] += 1
        most = max(
            spellings.values(), key=lambda counts: counts.total(), default=collections.Counter([""])
        )
        return [most.most_common(1)[0][0]] * len(questions)

    def score(self, questions: Sequence[Question], answers: Sequence[str]) -> Scores:
        """CIDEr-D beside all captions of the image; how rare words are, all of the questions together say."""
        references = [question.references for question in questions]
        return mean_scores(questions, cider_d(answers, references))

    def details(
        self, evaluated: EvaluatedModel, images: Sequence[ImageQuestions]
    ) -> dict[str, Any]:
        """See `Task`.

        Returns:
            "metric": of the score. "reference_score": what the first references score as answers: short ones are far from 10.
            "nll": nats per token of the references; "nll_per_caption": per caption; "nll_shuffled": per token, beside images of other
            captions, which changes nothing for a model that does not look, or None where all captions are the same.
        """
        template = find_template(evaluated.stage.data.template, evaluated.tokenizer)
        questions = [question for image in images for question in image.questions]
        likelihood = CaptionLikelihood(
            evaluated,
            [[template.caption(text) for text in question.references] for question in questions],
        )
        shown = [image.image for image in images]
        own, others = likelihood.compute(shown), other_images(questions)
        shuffled = (
            likelihood.compute([shown[index] for index in others], "the same beside other images")
            if others
            else None
        )
        return {
            "metric": METRIC,
            "reference_score": self.score(questions, [one.reference for one in questions]).score,
            "nll": own.nats / own.tokens,
            "nll_shuffled": shuffled.nats / shuffled.tokens if shuffled else None,
            "nll_per_caption": own.nats / own.captions,
        }


def other_images(questions: Sequence[Question]) -> list[int] | None:
    """For each question the next one, in a circle, whose image has none of its captions; None if for some there is no such image.

    Neighbours often have the same caption, and then the neighbour's image is not a wrong one."""
    captions = [frozenset(map(normalised, question.references)) for question in questions]
    others = []
    for index, own in enumerate(captions):
        circle = (*range(index + 1, len(captions)), *range(index))
        other = next((place for place in circle if own.isdisjoint(captions[place])), None)
        if other is None:
            return None
        others.append(other)
    return others


def _sources(data: DataConfig) -> dict[str, SourceConfig]:
    """Those of which captions can be scored."""
    return {name: source for name, source in data.sources.items() if source.captions}


def _captions(
    data: DataConfig, template: Template, part: Part
) -> Iterator[tuple[str, Path, str, str]]:
    """(name of the source, path of the image, caption, name of the example) of every usable example with both."""
    for name, config in _sources(data).items():
        source = config.open(template, holdout=data.holdout, part=part)
        for index in range(len(source)):
            try:
                if (found := source.captioned(index)) is not None:
                    yield name, *found, source[index].id
            except SampleError:
                continue


TASK = CaptionsTask()
