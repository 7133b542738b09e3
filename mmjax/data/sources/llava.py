"""Conversations in the JSON format of LLaVA (arXiv:2304.08485)."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

from mmjax.data.examples import Example, Image, Role, SampleError, Template, Text, Turn
from mmjax.data.sources.base import Part, Source, SourceConfig, check_index, split_part
from mmjax.data.sources.readers import check_folder, open_list

IMAGE_PLACEHOLDER = "<image>"
_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


@dataclasses.dataclass(frozen=True)
class LlavaSource(SourceConfig):
    """A LLaVA conversation file: a JSON list of {"id", "image": path or list of paths or absent, "conversations": [{"from", "value"}]}."""

    kind: Literal["llava"]
    path: str
    image_dir: str
    weight: float = 1.0
    conversations: ClassVar[bool] = True

    @property
    def reads(self) -> str:
        return self.path

    def open(self, template: Template, *, holdout: int = 0, part: Part = "train") -> "Llava":
        return Llava(self, template, holdout=holdout, part=part)


class Llava(Source):
    """One example per conversation: a single continuation with each image where its placeholder stands. Only what the assistant says
    carries loss."""

    def __init__(self, config: LlavaSource, template: Template, *, holdout: int, part: Part):
        """Finds the records. Raises InputError if the file or the image folder is missing, or the file is no JSON list."""
        self._folder = check_folder(config.image_dir, "image_dir")
        self._template = template
        self._records = open_list(config.path)
        self._indices = split_part(len(self._records), holdout, part, config.path)
        self._name = Path(config.path).name

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        row = self._indices[check_index(index, len(self))]
        record = self._records[row]
        name = f"{self._name}/{record.get('id', row)}"
        paths = record.get("image")
        paths = [] if paths is None else [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or any(
            not isinstance(path, str) or not path for path in paths
        ):
            raise SampleError("bad image", f"{name}: a path or a list of paths is expected")
        turns = _turns(record, name)
        placeholders = sum(text.count(IMAGE_PLACEHOLDER) for _, text in turns)
        if placeholders != len(paths):
            raise SampleError(
                "image placeholders do not match images",
                f"{name} has {placeholders} {IMAGE_PLACEHOLDER} for {len(paths)} images",
            )
        remaining = iter(paths)
        placed = []
        for role, text in turns:
            first, *others = text.split(IMAGE_PLACEHOLDER)
            content: list[Text | Image] = [Text(first)] if first else []
            for other in others:
                content.append(Image(self._folder / next(remaining)))
                content.extend([Text(other)] if other else [])
            placed.append(Turn(role, tuple(content)))
        return Example((), (self._template.conversation(placed),), name)


def _turns(record: dict[str, Any], name: str) -> list[tuple[Role, str]]:
    """(role, text) of each turn. After an optional system turn, user and assistant alternate.

    What the assistant says before the user has said anything is dropped, as LLaVA does: it answers nothing."""
    conversation = record.get("conversations")
    if not isinstance(conversation, list) or not conversation:
        raise SampleError("no conversation", name)
    turns = []
    for turn in conversation:
        role = _ROLES.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise SampleError("bad turn", f"{name}: {str(turn)[:80]}")
        turns.append((role, turn["value"].strip()))
    start = int(turns[0][0] == "system")
    while turns[start:] and turns[start][0] == "assistant":
        del turns[start]
    spoken = [role for role, _ in turns[start:]]
    if spoken != (["user", "assistant"] * len(spoken))[: len(spoken)]:
        raise SampleError(
            "turns do not alternate", f"{name}: {', '.join(role for role, _ in turns)}"
        )
    if not any(role == "assistant" and text for role, text in turns):
        raise SampleError("no answer", name)
    return turns
