"""The easy-vqa package: images of one coloured shape, with questions (https://pypi.org/project/easy-vqa/, MIT)."""

import dataclasses
import functools
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from mmjax.data.examples import Continuation, Example, Image, Template
from mmjax.data.sources.base import Part, Source, SourceConfig, check_index, naming, split_part
from mmjax.errors import InputError

SHAPES = frozenset({"circle", "rectangle", "triangle"})
COLORS = frozenset({"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"})
TASKS = ("caption", "question")
_QUESTIONS = "questions.json"
_NEGATIONS = frozenset({"no", "not"})
_WORD = re.compile(r"\w+")

QuestionType = Literal["shape", "color", "yes_no"]
Pair = tuple[str, str]
"""A question and its answer."""


@dataclasses.dataclass(frozen=True)
class EasyVqaSource(SourceConfig):
    """The easy-vqa package: 64 x 64 images of one shape, 38,575 training questions (https://pypi.org/project/easy-vqa/, MIT).

    Attributes:
        tasks: what is made of an image: "caption" (composed from what its questions determine), "question", or both side by side.
        split: "train" or "test" of the official split. The last `holdout` images of the training split (DataConfig) are kept for held-out
            loss.
    """

    kind: Literal["easy_vqa"]
    tasks: tuple[str, ...] = ("question",)
    split: Literal["train", "test"] = "train"
    weight: float = 1.0

    def open(self, template: Template, *, holdout: int = 0, part: Part = "train") -> "EasyVqa":
        return EasyVqa(self, template, holdout=holdout, part=part)


class EasyVqa(Source):
    """One example per image: the image is the prefix; its caption (if composed) and its questions, in file order, are the continuations;
    the caption is repeated in every row that the questions need.

    The official files are in random order of shape and colour, so the last images are as good a holdout as any. They are chosen
    among all images: every task holds out the same ones. An image of which no question tells anything has no caption, and no place in a
    source of captions alone.
    """

    def __init__(self, config: EasyVqaSource, template: Template, *, holdout: int, part: Part):
        """Reads the questions of the split. Raises InputError if the package is missing or broken, or a task is unknown."""
        unknown = [task for task in config.tasks if task not in TASKS]
        if unknown or not config.tasks:
            raise InputError(
                f"An easy_vqa source has the tasks {' and '.join(TASKS)}, not {', '.join(unknown) or 'none'}."
            )
        self._config = config
        # Located, not imported: only the files of the package are of use.
        spec = importlib.util.find_spec("easy_vqa")
        if spec is None or spec.origin is None:
            raise InputError(
                "The easy_vqa source needs the package easy-vqa: pip install mmjax[demo]."
            )
        self._folder = Path(spec.origin).parent / "data" / config.split
        self._pairs = _read_questions(self._folder / _QUESTIONS)
        kept = split_part(len(self._pairs), holdout, part, f"easy_vqa ({config.split})")
        images = sorted(self._pairs)[kept.start : kept.stop]
        self._captions = {image: compose_caption(self._pairs[image]) for image in images}
        self._images = [
            image for image in images if "question" in config.tasks or self._captions[image]
        ]
        self._template = template
        # The whole set has some hundred different continuations: each is made once.
        self._written: dict[Pair | str, Continuation] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        image = self._images[check_index(index, len(self))]
        name = f"easy_vqa/{self._config.split}/{image}"
        said: list[Pair | str] = []
        caption = self.caption(index) if "caption" in self._config.tasks else None
        if caption is not None:
            said.append(caption)
        if "question" in self._config.tasks:
            said.extend(self.questions(index))
        with naming(name):
            continuations = tuple(map(self._continuation, said))
        return Example(
            (Image(self.image_path(index)),),
            continuations,
            id=name,
            repeated=int(caption is not None),
        )

    def _continuation(self, said: Pair | str) -> Continuation:
        """A question and its answer, or a caption, as the template writes it."""
        if said not in self._written:
            template = self._template
            written = template.caption(said) if isinstance(said, str) else template.question(*said)
            self._written[said] = written
        return self._written[said]

    def input_files(self) -> Iterator[Path]:
        yield self._folder / _QUESTIONS
        yield from super().input_files()

    def questions(self, index: int) -> tuple[Pair, ...]:
        """Questions and answers of one image, in file order."""
        return self._pairs[self._images[index]]

    def caption(self, index: int) -> str | None:
        """What the questions of one image determine; see `compose_caption`."""
        return self._captions[self._images[index]]

    def image_path(self, index: int) -> Path:
        """The PNG file of one image."""
        return self._folder / "images" / f"{self._images[index]}.png"


def question_type(answer: str) -> QuestionType:
    """The type of a question, told by its official answer, whatever its wording. Raises ValueError for any other answer."""
    if answer in ("yes", "no"):
        return "yes_no"
    if answer in SHAPES:
        return "shape"
    if answer in COLORS:
        return "color"
    raise ValueError(f"{answer!r} is no answer of easy-vqa.")


def compose_caption(pairs: tuple[Pair, ...]) -> str | None:
    """A caption of what the questions and answers of an image determine, by elimination; nothing is guessed.

    Returns:
        "a red circle"; "a circle" where the colour is open; "a red shape" where the shape is; None where both are.
    """
    shapes, colors = SHAPES, COLORS
    for question, answer in pairs:
        is_there, named = _evidence(question, answer)
        if named & SHAPES:
            shapes = shapes & named if is_there else shapes - named
        if named & COLORS:
            colors = colors & named if is_there else colors - named
    assert shapes and colors, "the answers of one image contradict each other"
    if len(shapes) > 1 and len(colors) > 1:
        return None
    shape = next(iter(shapes)) if len(shapes) == 1 else "shape"
    return f"a {next(iter(colors))} {shape}" if len(colors) == 1 else f"a {shape}"


@functools.cache
def _evidence(question: str, answer: str) -> tuple[bool, frozenset[str]]:
    """What one answer tells: the words in the set are there in the image, or are not."""
    words = frozenset(_WORD.findall(question))
    if question_type(answer) != "yes_no":
        # "what is the red shape?" names a colour that is there, and its answer a shape.
        return True, words | {answer}
    return (answer == "yes") != bool(words & _NEGATIONS), words


def _read_questions(path: Path) -> dict[int, tuple[Pair, ...]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"The installed easy-vqa package is damaged ({error}); reinstall it with pip install mmjax[demo]."
        ) from None
    pairs: dict[int, list[Pair]] = {}
    for question, answer, image in rows:
        pairs.setdefault(image, []).append((question, answer))
    return {image: tuple(of_image) for image, of_image in pairs.items()}
