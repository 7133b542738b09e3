"""Captions and questions in a JSONL file beside a folder of images."""

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from mmjax.data.examples import Example, Image, SampleError
from mmjax.data.sources.base import Part, Source, check_index, split_part
from mmjax.data.sources.caption_split import CaptionKey, split_by_caption
from mmjax.data.sources.readers import RecordFile, check_folder, open_lines
from mmjax.data.text.templates import Continuation, Template
from mmjax.fetch.downloads import resolved
from mmjax.recipe.recipe import JsonlSource


class Jsonl(Source):
    """One example per line: the image (if named) is the prefix; the caption and the questions are the continuations."""

    def __init__(
        self, config: JsonlSource, template: Template, *, holdout: int = 0, part: Part = "train"
    ):
        """Finds the lines; to split by caption, reads them. Raises InputError if the file or the image folder is missing, or the file has
        no lines, or none that can be held out."""
        self._folder = check_folder(resolved(config.image_dir), "image_dir")
        self._template = template
        self._records = open_lines(resolved(config.path))
        self._indices: Sequence[int] | np.ndarray = (
            split_by_caption(_read_lines(self._records), holdout, part, config.path)
            if config.holdout_by == "caption" and holdout
            else split_part(len(self._records), holdout, part, config.path)
        )
        self._name = Path(config.path).name

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        record, name = self._record(index)
        path = self._image(record, name)
        prefix = () if path is None else (Image(path),)
        continuations = tuple(self._continuations(record, name))
        if not continuations:
            raise SampleError("no text", f"{name} has neither a text nor questions")
        return Example(prefix, continuations, name)

    def captioned(self, index: int) -> tuple[Path, str] | None:
        """The path of the image of an example and its caption; None if it lacks one of them. Raises as `source[index]`."""
        record, name = self._record(index)
        path = self._image(record, name)
        return (
            None
            if path is None or record.get("text") is None
            else (path, _string(record["text"], "text", name))
        )

    def _record(self, index: int) -> tuple[dict[str, Any], str]:
        row = int(self._indices[check_index(index, len(self))])
        return self._records[row], f"{self._name}/{row}"

    def _image(self, record: dict[str, Any], name: str) -> Path | None:
        return (
            None
            if record.get("image") is None
            else self._folder / _string(record["image"], "image", name)
        )

    def _continuations(self, record: dict[str, Any], name: str) -> list[Continuation]:
        continuations = []
        if record.get("text") is not None:
            continuations.append(self._template.caption(_string(record["text"], "text", name)))
        pairs = record.get("questions") or ()
        if not isinstance(pairs, list | tuple) or any(
            not isinstance(pair, list) or len(pair) != 2 for pair in pairs
        ):
            raise SampleError(
                "bad questions", f"{name}: a list of [question, answer] pairs is expected"
            )
        for question, answer in pairs:
            continuations.append(
                self._template.question(
                    _string(question, "question", name), _string(answer, "answer", name)
                )
            )
        return continuations


def _string(value: Any, field: str, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise SampleError(f"bad {field}", f"{name}: {value!r} is no text")
    return value


def _read_lines(records: RecordFile) -> list[CaptionKey]:
    """What a split by caption has to know of each line; of a damaged one nothing is known, and the loader counts it."""
    lines = []
    for row in range(len(records)):
        try:
            record = records[row]
        except SampleError:
            record = {}
        text, image = record.get("text"), record.get("image")
        caption = text if isinstance(text, str) and text.strip() else None
        lines.append(
            CaptionKey.of(caption, str(PurePath(image)) if isinstance(image, str) else None)
        )
    return lines
