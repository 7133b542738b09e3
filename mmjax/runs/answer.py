"""A run that has been trained, open for questions: its model is loaded once and answers prompts about images."""

import dataclasses
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmjax.base.signals import StopSignal
from mmjax.data.examples import Example, Image, SampleError, Text, Turn
from mmjax.data.text.templates import find_template
from mmjax.data.text.tokenizer import Tokenizer, WordTokenizer
from mmjax.errors import InputError
from mmjax.inference.generate import Generator
from mmjax.kernels.attention import prefer
from mmjax.models import parameters
from mmjax.recipe.recipe import DataConfig, Recipe, Stage
from mmjax.runs.inputs import Inputs
from mmjax.runs.workdir import Workdir, read_params
from mmjax.typing import Params

ANSWER_TOKENS = 64  # after which an answer is cut


class TrainedRun:
    """A run with one of its checkpoints in memory.

    Attributes:
        recipe: with the vocabulary of the tokenizer.
        stage: that the checkpoint is of; checkpoint: its folder.
        params: of the model, by path.
    """

    def __init__(
        self,
        recipe: Recipe,
        workdir: Workdir,
        checkpoint: str | None = None,
        max_new_tokens: int = ANSWER_TOKENS,
    ):
        """Arguments and errors as those of `open_run`."""
        stage, self.checkpoint = workdir.find_checkpoint(recipe, checkpoint)
        self.workdir = workdir
        self.recipe, self.tokenizer = workdir.resolve(recipe)
        self.stage: Stage = self.recipe.stages[stage.name]
        self.params: Params = read_params(self.checkpoint, self.recipe)
        self._generator = Generator(
            parameters.abstract(self.stage.model)[0],
            self.stage.model,
            self.tokenizer,
            template=self.stage.data.template,
            resize=self.stage.data.resize,
            batch_size=1,
            max_new_tokens=max_new_tokens,
        )

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """What the finished run scored, by task; empty if it was not scored yet."""
        if not self.workdir.summary.exists():
            return {}
        return json.loads(self.workdir.summary.read_text(encoding="utf-8"))["eval"]

    def answer(
        self,
        image: str | os.PathLike[str] | None,
        text: str,
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> str:
        """The answer to a prompt about an image, or about none.

        Args:
            should_stop: asked before the model answers.

        Raises:
            InputError: there is no such image, or it or the prompt cannot be used.
            Preempted: should_stop() was true.
        """
        if image is not None and not pathlib.Path(image).is_file():
            raise InputError(f"There is no image {os.fspath(image)!r}.")
        kernels = self.recipe.kernels
        try:
            asked = request(self.stage.data, image, text, self.tokenizer)
            with prefer(kernels.attention, deterministic=kernels.deterministic):
                return self._generator.answer_all(self.params, [asked], should_stop=should_stop)[0][
                    0
                ]
        except SampleError as error:
            raise InputError(f"The image or the prompt cannot be used: {error}.") from None


def open_run(
    workdir: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    checkpoint: str | None = None,
    max_new_tokens: int = ANSWER_TOKENS,
) -> TrainedRun:
    """Loads the model of a run.

    Args:
        recipe: of the run; None: the one in its folder.
        checkpoint: a folder checkpoints/STAGE/STEP; None: the newest of the last stage that has any.
        max_new_tokens: after which an answer is cut.

    Raises:
        InputError: there is no such run or checkpoint, or another recipe made it.
    """
    workdir = Workdir(workdir)
    return TrainedRun(recipe or workdir.recipe(), workdir, checkpoint, max_new_tokens)


def generate(
    recipe: Recipe,
    workdir: Workdir,
    *,
    image: str | None,
    prompt: str | None,
    checkpoint: str | None = None,
) -> str:
    """One answer of a run's newest state, or of a checkpoint folder, to a prompt about an image (or about none).

    Raises: as `generate_all`.
    """
    images, prompts = [] if image is None else [image], [] if prompt is None else [prompt]
    (answer,) = generate_all(recipe, workdir, images=images, prompts=prompts, checkpoint=checkpoint)
    return answer.text


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model says to a prompt about an image, or about none."""

    image: str | None
    prompt: str
    text: str

    def line(self) -> str:
        """Image, prompt and answer with tabs between them, in one line whatever they hold."""
        parts = (self.image or "", self.prompt, self.text)
        return "\t".join(" ".join(part.split()) for part in parts)


def generate_all(
    recipe: Recipe,
    workdir: Workdir,
    *,
    images: Sequence[str] = (),
    prompts: Sequence[str] = (),
    checkpoint: str | None = None,
) -> Iterator[Answer]:
    """The answers to every prompt about every image, image by image, as they come; the model is loaded once. Without images, to every
    prompt alone; without prompts, what the model writes behind each image: its caption.

    Raises:
        InputError: there is neither a prompt nor an image, no such image or no such checkpoint; said before anything is loaded.
        Preempted: a stop was requested.
    """
    if not all(prompts) or not (images or prompts):
        raise InputError(
            "--prompt is missing: what to ask. An --image alone, without --prompt, gets a caption."
        )
    for image in images:
        if not pathlib.Path(image).is_file():
            raise InputError(f"There is no image {image!r}.")
    with StopSignal() as stop, stop.at_once("Stopped while answering; there is nothing to save."):
        run = open_run(workdir, recipe=recipe, checkpoint=checkpoint)
        for line in Inputs(run.recipe, workdir, run.tokenizer).changed_tokenizer():
            print(f"mmjax: WARNING: not what the run has read: {line}", file=sys.stderr)
        shown: Sequence[str | None] = images or [None]
        for about, prompt in itertools.product(shown, prompts or [""]):
            if isinstance(run.tokenizer, WordTokenizer) and (
                unknown := run.tokenizer.unknown_words(prompt)
            ):
                words = ", ".join(unknown)
                print(f"mmjax: WARNING: not in what the model has read: {words}", file=sys.stderr)
            yield Answer(about, prompt, run.answer(about, prompt))


def request(
    data: DataConfig,
    image: str | os.PathLike[str] | None,
    prompt: str,
    tokenizer: Tokenizer | None = None,
) -> Example:
    """A prompt as the stage's data would put it: in a conversation the image stands in the user's turn, elsewhere before everything."""
    template = find_template(data.template, tokenizer)
    images = () if image is None else (Image(pathlib.Path(image)),)
    if any(source.conversations for source in data.sources.values()):
        said = (*images, Text(f"\n{prompt}")) if images else (Text(prompt),)
        return Example((), (template.conversation([Turn("user", said)]),), "prompt")
    return Example(images, (template.prompt(prompt),), "prompt")
