"""TensorFlow Datasets sets in array_record files, read without TensorFlow."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from mmjax.data.examples import Example, Image, SampleError, Template
from mmjax.data.sources.base import Part, Source, SourceConfig, check_index, naming, split_part
from mmjax.data.sources.readers import MAX_RECORD_BYTES, check_folder
from mmjax.errors import InputError

_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclasses.dataclass(frozen=True)
class TfdsSource(SourceConfig):
    """A TensorFlow Datasets set stored as array_record, read without TensorFlow.

    Attributes:
        name: such as "my_captions:1.0.0"; data_dir: where it was prepared.
        image, text: feature names of a caption set; question, answer: of a question set (leave the other pair empty).
    """

    kind: Literal["tfds"]
    name: str
    data_dir: str
    split: str = "train"
    image: str = "image"
    text: str = ""
    question: str = ""
    answer: str = ""
    weight: float = 1.0

    def open(self, template: Template, *, holdout: int = 0, part: Part = "train") -> "Tfds":
        return Tfds(self, template, holdout=holdout, part=part)


class Tfds(Source):
    """One example per record: its image is the prefix; its caption, or its question, is the continuation. Images stay encoded."""

    def __init__(self, config: TfdsSource, template: Template, *, holdout: int, part: Part):
        """Opens the prepared set. Raises InputError if the set, split or features do not exist, or its files are not array_record."""
        if bool(config.question) != bool(config.answer) or not (config.text or config.question):
            raise InputError(
                f"The tfds source {config.name} needs the feature `text`, or both `question` and `answer`."
            )
        self._config = config
        self._template = template
        self._records = _open_records(config)
        self._indices = split_part(len(self._records), holdout, part, config.name)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        config, template = self._config, self._template
        row = self._indices[check_index(index, len(self))]
        name = f"{config.name}/{config.split}/{row}"
        try:
            record = self._records[row]
        except Exception as error:  # tfds has no error of its own for a record that it cannot read
            raise SampleError("corrupt record", f"{name}: {error}") from None

        def text(feature: str) -> str:
            value = record[feature]
            if isinstance(value, bytes):
                if len(value) > MAX_RECORD_BYTES:
                    raise SampleError("oversized record", f"{feature} has {len(value):,} bytes")
                try:
                    value = value.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise SampleError("bad UTF-8", f"{feature}: {error.reason}") from None
            if not isinstance(value, str) or not value.strip():
                raise SampleError(f"bad {feature}", f"{str(value)[:80]!r} is no text")
            return value

        prefix = (Image(bytes(record[config.image])),) if config.image else ()
        continuations = []
        with naming(name):
            if config.text:
                continuations.append(template.caption(text(config.text)))
            if config.question:
                continuations.append(template.question(text(config.question), text(config.answer)))
        return Example(prefix, tuple(continuations), name)

    def input_files(self) -> Iterator[Path]:
        """All of the prepared set, other splits included: records and what describes them."""
        yield from sorted(
            path for path in _version_folder(self._config).iterdir() if path.is_file()
        )


def _open_records(config: TfdsSource) -> Any:
    import tensorflow_datasets as tfds  # seconds to import, so only where such a set is read

    folder = _version_folder(config)
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # tfds has no error of its own for a folder that it cannot read
        raise InputError(f"{folder} is no prepared data set: {error}") from None
    features = (config.image, config.text, config.question, config.answer)
    missing = [feature for feature in features if feature and feature not in builder.info.features]
    if missing:
        raise InputError(
            f"{config.name} has no feature {', '.join(missing)}; it has {', '.join(builder.info.features)}."
        )
    if builder.info.file_format is None or builder.info.file_format.value != "array_record":
        raise InputError(
            f"{config.name} is not stored as array_record; prepare it with file_format='array_record'."
        )
    decoders = {config.image: tfds.decode.SkipDecoding()} if config.image else None
    try:
        return builder.as_data_source(split=config.split, decoders=decoders)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{config.name}, split {config.split!r}: {error}. It has {', '.join(builder.info.splits)}."
        ) from None


def _version_folder(config: TfdsSource) -> Path:
    """data_dir/name/version; without a version in the name, the newest that is there."""
    name, _, version = config.name.partition(":")
    folder = check_folder(config.data_dir, "data_dir") / name
    found = (path.name for path in folder.glob("*") if _VERSION.fullmatch(path.name))
    versions = sorted(found, key=lambda version: tuple(map(int, version.split("."))))
    if not versions or (version and version not in versions):
        raise InputError(
            f"data_dir: {folder} holds no version {version or 'at all'}; it has {', '.join(versions) or 'none'}."
        )
    return folder / (version or versions[-1])
