"""Captions and questions in a JSONL file beside a folder of images."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, ClassVar, Literal

import numpy as np

from mmjax.data.examples import Continuation, Example, Image, SampleError, Template
from mmjax.data.sources.base import Part, Source, SourceConfig, check_index, naming, split_part
from mmjax.data.sources.caption_split import CaptionKey, split_by_caption
from mmjax.data.sources.readers import ImageFolder, RecordFile, open_records
from mmjax.data.sources.unread import check_keys, check_marks, is_learned
from mmjax.fetch.downloads import resolved


@dataclasses.dataclass(frozen=True)
class JsonlSource(SourceConfig):
    """One JSON object a line: {"image": path under image_dir, "text": caption} or {"image": ..., "questions": [[question, answer],
    ...]}.

    A file that is a JSON list of such objects will do, too.

    Attributes:
        image_dir: what images are relative to, and where they lie; None: the folder of the file.
        holdout_by: which examples `DataConfig.holdout` keeps from training. "position": the last ones. "caption": those that a digest of
        the captions chooses; examples with equal captions (case and punctuation aside) or the same image stay together, so that neither
        is met in training. They are never more than `holdout`, and fewer where all that is left belongs to larger groups.
        image_roots: more folders in which images may lie, for absolute paths, paths with "..", and links.
    """

    kind: Literal["jsonl"]
    path: str
    image_dir: str | None = None
    weight: float = 1.0
    holdout_by: Literal["position", "caption"] = "position"
    image_roots: tuple[str, ...] = ()
    captions: ClassVar[bool] = True

    @property
    def reads(self) -> str:
        return self.path

    def open(self, template: Template, *, holdout: int = 0, part: Part = "train") -> "Jsonl":
        return Jsonl(self, template, holdout=holdout, part=part)


class Jsonl(Source):
    """One example per line: the image (if named) is the prefix; the caption and the questions are the continuations."""

    def __init__(self, config: JsonlSource, template: Template, *, holdout: int, part: Part):
        """Finds the lines; to split by caption, reads them. Raises InputError if the file or the image folder is missing, or the file has
        no lines, or none that can be held out."""
        path = resolved(config.path, download=False)
        folder = (
            path.parent if config.image_dir is None else resolved(config.image_dir, download=False)
        )
        self._folder = ImageFolder(folder, config.image_roots)
        self._records = open_records(path)
        self._template = template
        self._indices: Sequence[int] | np.ndarray
        if config.holdout_by == "caption" and holdout:
            keys = [_caption_key(self._records, row) for row in range(len(self._records))]
            self._indices = split_by_caption(keys, holdout, part, config.path)
        else:
            self._indices = split_part(len(self._records), holdout, part, config.path)
        self._name = Path(config.path).name

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        record, name = self._read(index)
        with naming(name):
            image = self._image(record)
            continuations = tuple(self._continuations(record))
        if not continuations:
            known = any(record.get(key) for key in ("conversations", "messages"))
            advice = "; conversations are for a source of the kind llava" if known else ""
            raise SampleError("no text", f"{name} has neither a text nor questions{advice}")
        with naming(name):
            check_keys(record, _READ, _OTHER_TEXTS)
            if not is_learned(record):
                raise SampleError("no supervised token", "its weight is 0")
        return Example(() if image is None else (image,), continuations, name)

    def captioned(self, index: int) -> tuple[Path, str] | None:
        record, name = self._read(index)
        with naming(name):
            image = self._image(record)
            if image is None or record.get("text") is None:
                return None
            assert isinstance(image.source, Path)
            return image.source, _string(record["text"], "text")

    def _read(self, index: int) -> tuple[dict[str, Any], str]:
        """The record of an example, and its name."""
        row = int(self._indices[check_index(index, len(self))])
        return self._records[row], f"{self._name}/{row}"

    def _image(self, record: dict[str, Any]) -> Image | None:
        image = record.get("image")
        return None if image is None else self._folder.image(_string(image, "image"))

    def _continuations(self, record: dict[str, Any]) -> Iterator[Continuation]:
        if record.get("text") is not None:
            yield self._template.caption(_string(record["text"], "text"))
        pairs = record.get("questions") or ()
        if not isinstance(pairs, list | tuple) or any(
            not isinstance(pair, list) or len(pair) != 2 for pair in pairs
        ):
            raise SampleError("bad questions", "a list of [question, answer] pairs is expected")
        for question, answer in pairs:
            yield self._template.question(_string(question, "question"), _string(answer, "answer"))


_READ = frozenset({"image", "text", "questions"})
_OTHER_TEXTS = frozenset({"question", "answer", "conversations", "messages"})


def _string(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise SampleError(f"bad {field}", f"{str(value)[:80]!r} is no text")
    if field != "image":
        check_marks(value, images=False)
    return value


def _caption_key(records: RecordFile, row: int) -> CaptionKey:
    """What a split by caption has to know of a line; of a damaged one nothing is known, and the loader counts it."""
    try:
        record = records[row]
    except SampleError:
        record = {}
    text, image = record.get("text"), record.get("image")
    caption = text if isinstance(text, str) and text.strip() else None
    return CaptionKey.of(caption, str(PurePath(image)) if isinstance(image, str) else None)
