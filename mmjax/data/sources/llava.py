"""Conversations in the JSON format of LLaVA (arXiv:2304.08485)."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

from mmjax.data.examples import Example, Image, Role, SampleError, Template, Text, Turn
from mmjax.data.sources.base import Part, Source, SourceConfig, check_index, naming, split_part
from mmjax.data.sources.readers import ImageFolder, open_records
from mmjax.data.sources.unread import IMAGE_PLACEHOLDER, check_keys, check_marks, is_learned

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


@dataclasses.dataclass(frozen=True)
class LlavaSource(SourceConfig):
    """A LLaVA conversation file: a JSON list of {"id", "image": path or list of paths or absent, "conversations": [{"from", "value"}]}, or
    one such object a line.

    Attributes:
        image_dir: what images are relative to, and where they lie.
        image_roots: more folders in which images may lie, for absolute paths, paths with "..", and links.
    """

    kind: Literal["llava"]
    path: str
    image_dir: str
    weight: float = 1.0
    image_roots: tuple[str, ...] = ()
    conversations: ClassVar[bool] = True

    @property
    def reads(self) -> str:
        return self.path

    def open(self, template: Template, *, holdout: int = 0, part: Part = "train") -> "Llava":
        return Llava(self, template, holdout=holdout, part=part)


class Llava(Source):
    """One example per conversation: a single continuation with each image where its placeholder stands. Only what the assistant says
    carries loss, and of that only turns without a weight of 0."""

    def __init__(self, config: LlavaSource, template: Template, *, holdout: int, part: Part):
        """Finds the records. Raises InputError if the file or the image folder is missing, or the file holds no JSON."""
        self._folder = ImageFolder(config.image_dir, config.image_roots)
        self._template = template
        self._records = open_records(config.path)
        self._indices = split_part(len(self._records), holdout, part, config.path)
        self._name = Path(config.path).name

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        row = self._indices[check_index(index, len(self))]
        record = self._records[row]
        own = record.get("id")
        name = f"{self._name}:{row + 1}" if own is None else f"{self._name}/{str(own)[:80]}"
        with naming(name):
            return Example((), (self._template.conversation(self._turns(record)),), name)

    def _turns(self, record: dict[str, Any]) -> list[Turn]:
        """What is said, with the images where they are shown. Raises SampleError for a record that cannot be used."""
        check_keys(record, _READ)
        if not is_learned(record):
            raise SampleError("no supervised token", "its weight is 0")
        paths = record.get("image")
        paths = [] if paths is None else [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or any(
            not isinstance(path, str) or not path for path in paths
        ):
            raise SampleError("bad image", "a path or a list of paths is expected")
        turns = _said(record)
        placeholders = sum(text.count(IMAGE_PLACEHOLDER) for _, text, _ in turns)
        if placeholders != len(paths):
            raise SampleError(
                "image placeholders do not match images",
                f"there are {placeholders} {IMAGE_PLACEHOLDER} for {len(paths)} images",
            )
        images = map(self._folder.image, paths)
        placed = []
        for role, text, learned in turns:
            first, *others = text.split(IMAGE_PLACEHOLDER)
            content: list[Text | Image] = [Text(first)] if first else []
            for other in others:
                content.append(next(images))
                content.extend([Text(other)] if other else [])
            placed.append(Turn(role, tuple(content), learned))
        return placed


_READ = frozenset({"id", "image", "conversations"})


def _said(record: dict[str, Any]) -> list[tuple[Role, str, bool]]:
    """(role, text, whether it is learned) of each turn. After an optional system turn, user and assistant alternate.

    What the assistant says before the user has said anything is dropped, as LLaVA does: it answers nothing."""
    conversation = record.get("conversations")
    if not isinstance(conversation, list) or not conversation:
        raise SampleError("no conversation")
    turns = []
    for turn in conversation:
        role = _ROLES.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise SampleError("bad turn", str(turn)[:80])
        check_keys(turn, _READ_OF_TURN)
        text = turn["value"].strip()
        check_marks(text, images=True)
        learned = is_learned(turn, by_assistant=role == "assistant")
        turns.append((role, text, learned or role != "assistant"))
    start = int(turns[0][0] == "system")
    while turns[start:] and turns[start][0] == "assistant":
        del turns[start]
    spoken = [role for role, _, _ in turns[start:]]
    if spoken != (["user", "assistant"] * len(spoken))[: len(spoken)]:
        shown = ", ".join(role for role, _, _ in turns[:20])
        raise SampleError("turns do not alternate", shown)
    if not any(role == "assistant" and text for role, text, _ in turns):
        raise SampleError("no answer")
    return turns


_READ_OF_TURN = frozenset({"from", "value"})
