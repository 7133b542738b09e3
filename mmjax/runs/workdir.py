"""The folder of a run: where everything that a run leaves behind is found, and whose run it is.

| file | what |
|---|---|
| config.json | the recipe, every default written out |
| tokenizer.json | the tokenizer that was built from the training text |
| metrics.jsonl, tensorboard/ | training metrics, appended |
| checkpoints/STAGE/STEP | states |
| manifests/STAGE.json | where every parameter of the stage came from |
| previews/STAGE.txt, .png | the first row that the stage trains on |
| predictions.jsonl, attention.npz | answers of the last stage's model; where each scale of it looks in one image |
| nonfinite.json | the samples of a batch whose loss or gradient was not finite, if there was one |
| summary.json | what the run cost and scored |
| report.html | all of it to look at |
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmjax.errors import InputError
from mmjax.recipe.recipe import Recipe
from mmjax.recipe.serialization import digested, from_json, to_json

_SHOWN = 12


def default_path(file: str, overrides: Mapping[str, str]) -> pathlib.Path:
    """runs/<config>[-<variant>][-<hash of overrides>]: the same command finds the same folder.

    Args:
        file: of the config, with its variant: "configs/cos.py:7b".
        overrides: the settings of the command line, by path.
    """
    path, _, variant = file.partition(":")
    parts = [pathlib.Path(path).stem, *([variant] if variant else [])]
    if overrides:
        parts.append(
            hashlib.sha256(json.dumps(dict(overrides), sort_keys=True).encode()).hexdigest()[:8]
        )
    return pathlib.Path("runs", "-".join(parts))


class Workdir:
    """The files of a run. Nothing is written before `claim`."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self.config = self.path / "config.json"
        self.tokenizer = self.path / "tokenizer.json"
        self.metrics = self.path / "metrics.jsonl"
        self.predictions = self.path / "predictions.jsonl"
        self.summary = self.path / "summary.json"
        self.evaluations = self.path / "evaluations.jsonl"
        self.report = self.path / "report.html"
        self.checkpoints = self.path / "checkpoints"

    def manifest(self, stage: str) -> pathlib.Path:
        """Where every parameter of the stage came from."""
        return self.path / "manifests" / f"{stage}.json"

    def preview(self, stage: str, suffix: str) -> pathlib.Path:
        """The first row of a stage, as ".txt" or ".png"."""
        return self.path / "previews" / f"{stage}{suffix}"

    def check(self, recipe: Recipe) -> None:
        """Raises InputError if the folder holds another run than the recipe's, or something that is no run at all."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"The workdir {self.path} is a file.")
        if not self.config.exists():
            if self.path.is_dir() and any(self.path.iterdir()):
                raise InputError(
                    f"The workdir {self.path} is not empty and has no config.json: it is not the folder of a run. Choose another."
                )
            return
        changes = differences(digested(self.recipe()), digested(recipe))
        if changes:
            shown = "\n".join(f"  {change}" for change in changes[:_SHOWN])
            more = f"\n  and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
            raise InputError(
                f"The workdir {self.path} holds a run of another recipe. Choose another --workdir, or undo these changes:\n{shown}{more}"
            )

    def recipe(self) -> Recipe:
        """The recipe in config.json. Raises InputError if it cannot be read."""
        try:
            return from_json(json.loads(self.config.read_text(encoding="utf-8")))
        except FileNotFoundError:
            why = "it has no config.json" if self.path.is_dir() else "there is no such folder"
            raise InputError(f"There is no run in {self.path}: {why}.") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{self.config} cannot be read: {error}") from None

    @contextlib.contextmanager
    def claim(self, recipe: Recipe) -> Iterator[None]:
        """Makes the folder this recipe's and keeps other processes out of it while the context lasts.

        If the input turns out to be wrong before anything was saved, the folder is left as empty as it was found, or
        not there if it was not.

        Raises:
            InputError: it holds another run (`check`), another process is running in it, or it cannot be written.
        """
        self.check(recipe)
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        with contextlib.ExitStack() as stack:
            try:
                for folder in ("manifests", "previews", "checkpoints"):
                    (self.path / folder).mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((self.path / ".lock").open("w"))
            except OSError as error:
                raise InputError(
                    f"The workdir {self.path} cannot be written: {error.strerror}."
                ) from None
            try:
                fcntl.flock(
                    lock, fcntl.LOCK_EX | fcntl.LOCK_NB
                )  # freed by the kernel, however the process ends
            except BlockingIOError:
                raise InputError(
                    f"Another process is running in the workdir {self.path}."
                ) from None
            fresh = not self.config.exists()
            write_json(self.config, to_json(recipe))
            try:
                yield
            except InputError:
                if fresh and not any(self.checkpoints.glob("*/*")):
                    self._clear(made)
                raise

    def _clear(self, made: Sequence[pathlib.Path]) -> None:
        """Removes what a run wrote whose input proved wrong before its first checkpoint: the corrected command may use the folder.

        made: folders that were not there before, the inner ones first; they go, too, unless something else has come into them.
        """
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file in one step: a reader finds the old file or the new one, whenever the process is killed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two trees differ: "stages.pretrain.steps: 1500 there, 1000 here"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        nothing = object()
        pairs = [
            (f"{path}.{key}".lstrip("."), old.get(key, nothing), new.get(key, nothing))
            for key in keys
        ]
        return [
            line
            for place, left, right in pairs
            for line in (
                [f"{place}: only there"]
                if right is nothing
                else [f"{place}: only here"]
                if left is nothing
                else differences(left, right, place)
            )
        ]
    return [] if old == new else [f"{path}: {old!r} there, {new!r} here"]
