"""The folder of a run: whose run it is, what stands in it, and reading that back.

| file | what |
|---|---|
| config.json | the recipe, every default written out, with the vocabulary of the tokenizer |
| tokenizer.json | the tokenizer that was built from the training text |
| inputs.json | what the data, the tokenizer and the weights held that the run has read: size and digest of each file |
| metrics.jsonl, tensorboard/ | training metrics, appended |
| checkpoints/STAGE/STEP | states |
| manifests/STAGE.json | where every parameter of the stage came from |
| origins/ | what the run keeps of the models that its stages begin as (mmjax.runs.origins) |
| parameters/STAGE.txt | every parameter of the stage: trained or frozen, shape, dtype, how it is split over devices |
| previews/STAGE.txt, .png | the first row that the stage trains on |
| predictions.jsonl, attention.npz | answers of the last stage's model; where each scale of it looks in one image |
| evaluations.jsonl | what else was scored, a line each: other checkpoints, other settings, some of the images |
| nonfinite.json | the samples of a batch whose loss or gradient was not finite, if there was one |
| summary.json | what the run cost and scored |
| report.html | all of it to look at |
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jax.sharding import Sharding

from mmjax.base.files import OF_THE_DISK, check_name, is_draft, remove_drafts
from mmjax.data.text import vocabulary
from mmjax.data.text.tokenizer import Tokenizer, WordTokenizer, open_tokenizer
from mmjax.errors import InputError
from mmjax.fetch.downloads import resolved
from mmjax.recipe.recipe import EvaluationConfig, Recipe, Stage
from mmjax.recipe.schema import ABSENT, differences
from mmjax.recipe.serialization import digest, digested, from_json, to_json, to_plain
from mmjax.runs.environment import hardware, versions
from mmjax.training.checkpoint import load_params
from mmjax.typing import Params

if TYPE_CHECKING:
    from mmjax.training.loop import StageResult  # with the loop comes all that loads data

SCHEMA_VERSION = 1  # of summary.json
_NOT_OF_THE_FOLDER = ("evaluation", "logging")  # settings that name no folder of their own
LOCK = ".lock"
FOLDERS = ("manifests", "parameters", "previews", "checkpoints")
_SHOWN = 12  # differences that a message lists


def default_path(file: str, overrides: Mapping[str, object]) -> pathlib.Path:
    """runs/<config>[-<variant>][-<hash of overrides>]: the same command finds the same folder, however it is scored and watched.

    Args:
        file: of the config, with its variant: "configs/cos.py:7b".
        overrides: the settings of the command line, by path.
    """
    path, _, variant = file.partition(":")
    parts = [pathlib.Path(path).stem, *([variant] if variant else [])]
    named = {
        key: overrides[key] for key in overrides if key.split(".")[0] not in _NOT_OF_THE_FOLDER
    }
    if named:
        changes = json.dumps(named, sort_keys=True)
        parts.append(hashlib.sha256(changes.encode()).hexdigest()[:8])
    return pathlib.Path("runs", "-".join(parts))


class Workdir(os.PathLike[str]):
    """The files of a run. Nothing is written before `claim`."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self.config = self.path / "config.json"
        self.tokenizer = self.path / "tokenizer.json"
        self.metrics = self.path / "metrics.jsonl"
        self.predictions = self.path / "predictions.jsonl"
        self.summary = self.path / "summary.json"
        self.evaluations = self.path / "evaluations.jsonl"
        self.inputs = self.path / "inputs.json"
        self.report = self.path / "report.html"
        self.checkpoints = self.path / "checkpoints"
        self.origins = self.path / "origins"

    def __fspath__(self) -> str:
        return str(self.path)

    def manifest(self, stage: str) -> pathlib.Path:
        """Where every parameter of the stage came from."""
        return self.path / "manifests" / f"{stage}.json"

    def parameters(self, stage: str) -> pathlib.Path:
        """Every parameter of the stage, as tables."""
        return self.path / "parameters" / f"{stage}.txt"

    def preview(self, stage: str, suffix: str) -> pathlib.Path:
        """The first row of a stage, as ".txt" or ".png"."""
        return self.path / "previews" / f"{stage}{suffix}"

    def recipe(self) -> Recipe:
        """The recipe in config.json. Raises InputError if it cannot be read."""
        try:
            return from_json(json.loads(self.config.read_text(encoding="utf-8")))
        except FileNotFoundError:
            why = "it has no config.json" if self.path.is_dir() else "there is no such folder"
            raise InputError(f"There is no run in {self.path}: {why}.") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{self.config} cannot be read: {error}") from None

    def resolve(self, recipe: Recipe, *, build: bool = False) -> tuple[Recipe, Tokenizer]:
        """The recipe with the vocabulary of the run's tokenizer in every decoder, and that tokenizer.

        Args:
            build: make a tokenizer of words from the training text if the folder has none yet; it is not written.

        Raises:
            InputError: the tokenizer cannot be read or built, or a decoder has fewer tokens.
        """
        if recipe.tokenizer.kind == "words" and (self.tokenizer.exists() or not build):
            tokenizer: Tokenizer = WordTokenizer.load(self.tokenizer)
        else:
            kept = self.origins / "tokenizer"
            tokenizer = open_tokenizer(kept) if kept.is_dir() else vocabulary.make_tokenizer(recipe)
        return vocabulary.fit(recipe, tokenizer), tokenizer

    def tokenizer_path(self, recipe: Recipe) -> pathlib.Path:
        """Where the published tokenizer of a recipe lies: what the run has kept of it (mmjax.runs.origins), or else the recipe's."""
        kept = self.origins / "tokenizer"
        if kept.is_dir():
            return kept
        assert recipe.tokenizer.path is not None
        return resolved(recipe.tokenizer.path, weights=False)

    def check(self, recipe: Recipe) -> None:
        """Raises InputError if the folder holds another run than the recipe's, or something that is no run at all, or cannot be read."""
        check_name(self.path)
        try:
            if self.path.exists() and not self.path.is_dir():
                raise InputError(f"The workdir {self.path} is a file.")
            if not self.config.exists():
                if (found := self._not_of_a_beginning()) is not None:
                    raise InputError(
                        f"The workdir {self.path} is not empty and has no config.json: it is not the folder of a run. Choose another, or "
                        f"put its config.json back. It has {found.name!r}."
                    )
                return
        except OSError as error:
            raise InputError(f"The workdir {self.path} cannot be used: {error.strerror}.") from None
        changes = []
        for path, there, here in differences(digested(self.recipe()), digested(recipe)):
            if here is ABSENT or there is ABSENT:
                changes.append(f"{path}: only {'there' if here is ABSENT else 'here'}")
            elif here is not None or not path.endswith(".model.decoder.vocabulary"):
                changes.append(f"{path}: {there!r} there, {here!r} here")
        if changes:
            shown = "\n".join(f"  {change}" for change in changes[:_SHOWN])
            more = f"\n  and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
            raise InputError(
                f"The workdir {self.path} holds a run of another recipe. Choose another --workdir, or undo these changes:\n{shown}{more}"
            )

    def _not_of_a_beginning(self) -> pathlib.Path | None:
        """Something in the folder that a process does not leave there which is killed before it has written config.json, or None."""
        for path in self.path.iterdir() if self.path.is_dir() else ():
            empty = path.name in FOLDERS and path.is_dir() and not any(path.iterdir())
            if not (empty or path.name == LOCK or is_draft(path)):
                return path
        return None

    @contextlib.contextmanager
    def claim(self, recipe: Recipe) -> Iterator[tuple[Recipe, Tokenizer]]:
        """Makes the folder this recipe's and keeps other processes out of it while the context lasts. Gives what `resolve` returns.

        The lock is made first and config.json next, so that a process may be killed at any moment. If the input turns out to be wrong, or
        the disk full, before anything was saved, the folder is left as empty as it was found, or removed if it was not there.

        Raises:
            InputError: it holds another run (`check`), another process is running in it, or it cannot be written, now or while the context
                lasts; or as `resolve`.
        """
        self.check(recipe)  # before anything is written
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            with self._disk_errors(), self._locked():
                self.check(recipe)  # another process may have made it its own meanwhile
                fresh = not self.config.exists()
                try:
                    with self._disk_errors():
                        yield self._begin(recipe)
                except InputError:
                    if fresh and not any(self.checkpoints.glob("*/*")):
                        # The corrected command may use the folder.
                        with contextlib.suppress(OSError):
                            for path in self.path.iterdir():
                                shutil.rmtree(path) if path.is_dir() else path.unlink()
                    raise
        except InputError:
            with contextlib.suppress(OSError):
                for folder in made:  # the inner ones first, unless something is or came into them
                    folder.rmdir()
            raise

    def _begin(self, recipe: Recipe) -> tuple[Recipe, Tokenizer]:
        """Writes what says whose run it is, and the folders. Gives what `resolve` returns."""
        remove_drafts(self.path)
        recipe, tokenizer = self.resolve(recipe, build=True)
        self.check(recipe)
        write_json(self.config, to_json(recipe))
        if isinstance(tokenizer, WordTokenizer) and not self.tokenizer.exists():
            tokenizer.save(self.tokenizer)
        for name in FOLDERS:
            (self.path / name).mkdir(exist_ok=True)
            remove_drafts(self.path / name)
        return recipe, tokenizer

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Makes the folder and keeps other processes out of it. Raises InputError if one is there."""
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / LOCK).open("w") as lock:
                try:
                    # Freed by the kernel, however the process ends.
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise InputError(
                        f"Another process is running in the workdir {self.path}."
                    ) from None
                try:
                    same = os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name))
                except FileNotFoundError:
                    same = False  # another process has left the folder as it had found it
                if same:
                    yield
                    return

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Errors of writing in the folder become InputError: those of its files, and those of a disk, which often name no file."""
        try:
            yield
        except OSError as error:
            if isinstance(error.filename, str):
                path = pathlib.Path(error.filename).absolute()
                ours = path.is_relative_to(self.path.absolute())
            else:
                ours = error.errno in OF_THE_DISK
            if not ours:
                raise
            raise InputError(
                f"The workdir {self.path} cannot be written: {error.strerror}."
            ) from None

    def newest_step(self, stage: str) -> int | None:
        """The step of the newest checkpoint of a stage, or None."""
        return max(_steps_in(self.checkpoints / stage), default=None)

    def find_checkpoint(self, recipe: Recipe, checkpoint: str | None) -> tuple[Stage, pathlib.Path]:
        """The stage and folder of a checkpoint: the given one, or the newest of the last stage that has any.

        Raises:
            InputError: there is none.
        """
        if checkpoint is None:
            for stage in reversed(recipe.stages.values()):
                if (newest := self.newest_step(stage.name)) is not None:
                    return stage, self.checkpoints / stage.name / str(newest)
            raise InputError(
                f"There is no checkpoint in {self.path}: train first, or name one with --checkpoint."
            )
        folder = pathlib.Path(checkpoint).absolute()
        if not folder.is_dir() or not folder.name.isdecimal():
            there = "".join(
                f" {place} has {', '.join(map(str, steps))}."
                for place in (folder, folder.parent)
                if (steps := _steps_in(place))
            )
            raise InputError(
                f"There is no checkpoint {checkpoint}: a folder checkpoints/<stage>/<step> is expected.{there}"
            )
        if folder.parent.name not in recipe.stages:
            raise InputError(
                f"{checkpoint} is a checkpoint of stage {folder.parent.name!r}; the recipe has {', '.join(recipe.stages)}."
            )
        return recipe.stages[folder.parent.name], folder


def _steps_in(folder: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def read_params(
    checkpoint: pathlib.Path, recipe: Recipe, shardings: Mapping[str, Sharding] | None = None
) -> Params:
    """The parameters of a checkpoint folder of this resolved recipe, or those that `shardings` names, read to where it says.

    Raises InputError if another recipe made it.
    """
    params, metadata = load_params(checkpoint, shardings)
    if metadata.get("config_digest") != digest(recipe):
        raise InputError(
            f"{checkpoint} was made by another recipe; name the one that made it, or its --workdir alone."
        )
    return params


@dataclasses.dataclass
class Summary:
    """summary.json: what a run cost and scored. Written after every stage, so that an interrupted run knows which are done.

    Attributes:
        stages: one entry per finished stage, in order: name, steps, samples (rows), tokens, seconds, seconds_by_cause, devices (of the
            mesh that it was finished on), device_seconds (seconds times devices), flops, visual_tokens_per_image, held_out_loss; skipped
            (unusable training samples, by cause; one is counted each time it is met) and skip_examples (the first of each cause, and what
            is wrong with it).
        eval: by task, what `evaluation.run` returned of all images of the task; empty until the last stage was scored. What it scored on
            some of them stands in evaluations.jsonl alone.
        evaluation: the run's own settings, once the last stage was scored with them; None until then.
        accepted_changes: where what the run reads had changed when it went on, with the changes: {"stage", "step", "changes"}.
    """

    path: pathlib.Path
    recipe: Recipe
    stages: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    eval: dict[str, Any] = dataclasses.field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    accepted_changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def open(cls, path: pathlib.Path, recipe: Recipe) -> "Summary":
        """The summary that an earlier process of the same run left, or an empty one. Raises InputError if it cannot be read."""
        if not path.exists():
            return cls(path, recipe)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["config_digest"] != digest(recipe):
                raise ValueError("it belongs to another recipe")
            return cls(
                path,
                recipe,
                content["stages"],
                content["eval"],
                content["evaluation"],
                content.get("accepted_changes", []),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} cannot be read: {error!r}. Without it the run starts its bookkeeping anew: remove it."
            ) from None

    def has(self, stage: Stage) -> bool:
        """Whether a stage is finished and written down."""
        return any(entry["name"] == stage.name for entry in self.stages)

    @property
    def is_scored(self) -> bool:
        """Whether the scores are those that the recipe asks for."""
        return self.evaluation == to_plain(self.recipe.evaluation)

    def add_stage(self, stage: Stage, result: "StageResult") -> None:
        """Writes a finished stage down, in place of an earlier entry of it."""
        entry = {
            "name": stage.name,
            "steps": result.steps,
            "samples": result.samples,
            "tokens": result.tokens,
            "seconds": sum(result.seconds.values()),
            "seconds_by_cause": result.seconds,
            "devices": result.devices,
            "device_seconds": result.device_seconds,
            "flops": result.flops,
            "visual_tokens_per_image": stage.model.visual_tokens,
            "held_out_loss": result.held_out_loss,
            "skipped": result.skipped,
            "skip_examples": result.skip_examples,
        }
        self.stages = [*(other for other in self.stages if other["name"] != stage.name), entry]
        self.eval, self.evaluation = {}, None
        self._write()

    def add_scores(self, scores: Mapping[str, Any], asked: EvaluationConfig | None) -> None:
        """Writes scores of the last stage on all images down, by task; those of other tasks stay.

        Args:
            asked: the run's own settings, if nothing of what they ask for is missing now; else None.
        """
        self.eval = {**self.eval, **scores}
        if asked is not None:
            self.evaluation = to_plain(asked)
        self._write()

    def accept(self, stage: str, step: int, changes: list[str]) -> None:
        """Writes down that the run went on from a step of a stage although what it reads had changed."""
        self.accepted_changes.append({"stage": stage, "step": step, "changes": changes})
        self._write()

    def _write(self) -> None:
        content = {
            "schema_version": SCHEMA_VERSION,
            "config_digest": digest(self.recipe),
            "seed": self.recipe.seed,
            "stages": self.stages,
            "eval": self.eval,
            "evaluation": self.evaluation,
            "accepted_changes": self.accepted_changes,
            "versions": versions(),
            "hardware": hardware(),
        }
        write_json(self.path, content)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file in one step: a reader finds the old file or the new one, whenever the process is killed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
