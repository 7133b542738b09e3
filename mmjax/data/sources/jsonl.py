"""Captions and questions in a JSONL file beside a folder of pictures."""

from pathlib import Path
from typing import Any

from mmjax.data.examples import Example, Image, SampleError
from mmjax.data.sources.base import Part, Source, check_index, split_part
from mmjax.data.sources.files import check_folder, open_lines
from mmjax.data.templates import Branch, Template
from mmjax.fetch import resolved
from mmjax.recipe import JsonlSource


class Jsonl(Source):
    """One example per line: the picture (if named) is the prefix; the caption and the questions are the branches."""

    def __init__(self, config: JsonlSource, template: Template, *, holdout: int = 0, part: Part = "train"):
        """Finds the lines. Raises InputError if the file or the image folder is missing, or the file has no lines."""
        self._folder = check_folder(resolved(config.image_dir), "image_dir")
        self._template = template
        self._records = open_lines(resolved(config.path))
        self._indices = split_part(len(self._records), holdout, part, config.path)
        self._name = Path(config.path).name

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        row = self._indices[check_index(index, len(self))]
        name = f"{self._name}/{row}"
        record = self._records[row]
        prefix = (Image(self._folder / _string(record["image"], "image", name)),) if record.get("image") is not None else ()
        branches = tuple(self._branches(record, name))
        if not branches:
            raise SampleError("no text", f"{name} has neither a text nor questions")
        return Example(prefix, branches, name)

    def _branches(self, record: dict[str, Any], name: str) -> list[Branch]:
        branches = []
        if record.get("text") is not None:
            branches.append(self._template.caption(_string(record["text"], "text", name)))
        pairs = record.get("questions") or ()
        if not isinstance(pairs, list | tuple) or any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
            raise SampleError("bad questions", f"{name}: a list of [question, answer] pairs is expected")
        for question, answer in pairs:
            branches.append(self._template.question(_string(question, "question", name), _string(answer, "answer", name)))
        return branches


def _string(value: Any, field: str, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise SampleError(f"bad {field}", f"{name}: {value!r} is no text")
    return value
