"""What a run reads beside its recipe, which knows paths only: data, tokenizer, weights. What these held is kept with the run (inputs.json)
and with its checkpoints, and compared when it goes on: other data would be read in another order, and move what is held out."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from mmjax.base.fingerprint import changes, fingerprint, fingerprints
from mmjax.data.sources.base import SourceConfig
from mmjax.data.text.huggingface_tokenizer import HuggingFaceTokenizer
from mmjax.data.text.templates import TEMPLATES
from mmjax.data.text.tokenizer import Tokenizer
from mmjax.errors import InputError
from mmjax.fetch.downloads import resolved
from mmjax.recipe.recipe import RANDOM, Recipe, Stage
from mmjax.runs.workdir import Workdir, write_json
from mmjax.training.checkpoint import load_metadata
from mmjax.weights.load import form_of

TOKENIZER = "tokenizer"
# Bytes of a file of which all is read. Of the data file, planning reads all anyway, and more slowly; of the many images that is too much.
_DATA_WHOLE, _IMAGE_WHOLE = 1024 * 1024 * 1024, 256 * 1024
_SHOWN = 12  # changes that a message lists
# Beside a published tokenizer, these say what text becomes.
_TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "vocab.*",
    "merges.txt",
)
_WEIGHT_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.gguf",
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
)

Found = dict[str, dict[str, str]]
"""By input, by file: its fingerprint."""


class Inputs:
    """The inputs of a run, and what they held when it read them.

    An input is named by what the recipe says of it; stages that read the same share it.
    """

    def __init__(self, recipe: Recipe, workdir: Workdir, tokenizer: Tokenizer):
        """The claimed recipe and its tokenizer. What is known of an earlier process is read: of inputs.json, or else of a checkpoint."""
        self._workdir, self._tokenizer = workdir, tokenizer
        self._known: dict[str, dict[str, Any]]
        try:
            content = json.loads(workdir.inputs.read_text(encoding="utf-8"))
            self._known = {
                name: {"digest": _digest(files), "files": files} for name, files in content.items()
            }
        except (OSError, ValueError, TypeError, AttributeError):
            saved = (
                workdir.checkpoints / stage / str(step)
                for stage in reversed(recipe.stages)
                if (step := workdir.newest_step(stage)) is not None
            )
            digests: dict[str, str] = next(
                (load_metadata(folder).get("inputs", {}) for folder in saved), {}
            )
            self._known = {name: {"digest": one} for name, one in digests.items()}

    @property
    def digests(self) -> dict[str, str]:
        """What is known of each input, for checkpoints."""
        return {name: entry["digest"] for name, entry in self._known.items()}

    def read(self, stages: Iterable[Stage], *, weights: bool = True) -> Found:
        """What the inputs of some stages hold now. One that is not there is left out: whoever needs it says so."""
        found: Found = {}
        for name, files in itertools.chain.from_iterable(map(self._of_stage, stages)):
            if name not in found and (weights or not name.startswith("weights")):
                with contextlib.suppress(InputError):
                    found[name] = files()
        return {name: files for name, files in found.items() if files}

    def changed(self, now: Found, used: Collection[str] | None = None) -> list[str]:
        """What is not as the run has read it, in words.

        Args:
            used: of these inputs only; None: of all.
        """
        found = []
        for name, files in now.items():
            known = self._known.get(name)
            if (
                known is None
                or known["digest"] == _digest(files)
                or (used is not None and name not in used)
            ):
                continue
            lines = changes(known["files"], files) if "files" in known else ["it has changed"]
            found += [f"{name}: {line}" for line in lines[:_SHOWN]]
            if len(lines) > _SHOWN:
                found.append(f"{name}: and {len(lines) - _SHOWN} more")
        return found

    def changed_tokenizer(self) -> list[str]:
        """As `changed`, of the tokenizer alone."""
        return self.changed({TOKENIZER: self._tokenizer_files()})

    def names(self, stages: Iterable[Stage]) -> set[str]:
        """The inputs of some stages."""
        return {name for stage in stages for name, _ in self._of_stage(stage)}

    def keep(self, now: Found) -> None:
        """From here on, this is what the run has read."""
        for name, files in now.items():
            self._known[name] = {"digest": _digest(files), "files": files}
        known = {name: entry["files"] for name, entry in self._known.items() if "files" in entry}
        write_json(self._workdir.inputs, known)

    def _of_stage(self, stage: Stage) -> Iterator[tuple[str, Callable[[], dict[str, str]]]]:
        """Each input of a stage with what reads it."""
        yield TOKENIZER, self._tokenizer_files
        for source in stage.data.sources.values():
            yield _name(source), functools.partial(_source_files, source)
        for path in stage.init_from.values():
            if path != RANDOM:
                yield f"weights {path}", functools.partial(_weight_files, path)

    def _tokenizer_files(self) -> dict[str, str]:
        if not isinstance(self._tokenizer, HuggingFaceTokenizer):
            return fingerprints([self._workdir.tokenizer])
        file = self._tokenizer.path
        beside = () if file.suffix == ".gguf" else _matching(file.parent, _TOKENIZER_FILES)
        return fingerprints([file, *beside])


def _source_files(config: SourceConfig) -> dict[str, str]:
    """The files that its config names, and those that its examples come from, whatever template makes texts of them."""
    named = [path for text in _texts(config) if (path := _place(text)).is_file()]
    files = config.open(TEMPLATES["plain"]).input_files()
    return fingerprints(files, _IMAGE_WHOLE) | {
        path.name: fingerprint(path, _DATA_WHOLE) for path in named
    }


def _texts(config: SourceConfig) -> list[str]:
    names = (field.name for field in dataclasses.fields(config) if field.name != "kind")
    return [value for name in names if isinstance(value := getattr(config, name), str)]


def _name(config: SourceConfig) -> str:
    """Such as "jsonl captions.jsonl, images"."""
    return f"{config.kind} {', '.join(filter(None, _texts(config)))}".strip()


def _place(text: str) -> Path:
    try:
        return resolved(text, download=False)
    except InputError:
        return Path(text)


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def _weight_files(path: str) -> dict[str, str]:
    """The files of published weights that are read: of a folder of transformers not its README, nor other forms of the same weights."""
    place = resolved(path, download=False)
    if place.is_file():
        return fingerprints([place, *_matching(place.parent, ("config.json",))])
    if form_of(place) == "published":
        return fingerprints(_matching(place, _WEIGHT_FILES))
    return fingerprints(sorted(file for file in place.rglob("*") if file.is_file()))


def _digest(files: dict[str, str]) -> str:
    text = json.dumps(files, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
