"""TensorFlow Datasets sets in array_record files, read without TensorFlow."""

import re
from pathlib import Path
from typing import Any

from mmjax.data.examples import Example, Image, SampleError
from mmjax.data.sources.base import Part, Source, check_index, split_part
from mmjax.data.sources.readers import check_folder
from mmjax.data.text.templates import Continuation, Template
from mmjax.errors import InputError
from mmjax.recipe.recipe import TfdsSource

_VERSION = re.compile(r"\d+\.\d+\.\d+")


class Tfds(Source):
    """One example per record: its image is the prefix; its caption, or its question, is the continuation. Images stay encoded."""

    def __init__(
        self, config: TfdsSource, template: Template, *, holdout: int = 0, part: Part = "train"
    ):
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
        row = self._indices[check_index(index, len(self))]
        name = f"{self._config.name}/{self._config.split}/{row}"
        record = self._records[row]
        prefix = (Image(bytes(record[self._config.image])),) if self._config.image else ()
        return Example(prefix, tuple(self._continuations(record, name)), name)

    def _continuations(self, record: dict[str, Any], name: str) -> list[Continuation]:
        config, continuations = self._config, []
        if config.text:
            continuations.append(
                self._template.caption(_text(record[config.text], config.text, name))
            )
        if config.question:
            question = _text(record[config.question], config.question, name)
            continuations.append(
                self._template.question(question, _text(record[config.answer], config.answer, name))
            )
        return continuations


def _open_records(config: TfdsSource) -> Any:
    import tensorflow_datasets as tfds  # seconds to import, so only where such a set is read

    folder = _version_folder(config)
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # tfds has no error of its own for a folder that it cannot read
        raise InputError(f"{folder} is no prepared data set: {error}") from None
    wanted = [
        feature
        for feature in (config.image, config.text, config.question, config.answer)
        if feature
    ]
    missing = [feature for feature in wanted if feature not in builder.info.features]
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
    versions = sorted(
        (path.name for path in folder.glob("*") if _VERSION.fullmatch(path.name)), key=_version_key
    )
    if not versions or (version and version not in versions):
        raise InputError(
            f"data_dir: {folder} holds no version {version or 'at all'}; it has {', '.join(versions) or 'none'}."
        )
    return folder / (version or versions[-1])


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _text(value: Any, field: str, name: str) -> str:
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SampleError("bad UTF-8", f"{name}, {field}: {error.reason}") from None
    if not isinstance(value, str) or not value.strip():
        raise SampleError(f"bad {field}", f"{name}: {value!r} is no text")
    return value
