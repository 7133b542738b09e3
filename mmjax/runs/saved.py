"""summary.json: what a run cost and scored. Written after every stage, so that an interrupted run knows which are done.

What a run has left on disk: its tokenizer, its checkpoints, the parameters in them.
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Sharding

from mmjax.data.text import vocabulary
from mmjax.data.text.tokenizer import Tokenizer, WordTokenizer
from mmjax.errors import InputError
from mmjax.recipe.recipe import Recipe, Stage
from mmjax.recipe.schema import to_plain
from mmjax.recipe.serialization import digest
from mmjax.runs.workdir import Workdir, write_json
from mmjax.training.checkpoint import load_params
from mmjax.training.result import StageResult
from mmjax.typing import Params

SCHEMA_VERSION = 1
_PACKAGES = ("mmjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclasses.dataclass
class Summary:
    """The summary of a run, kept on disk.

    Attributes:
        stages: one entry per finished stage, in order: name, steps, samples (rows), tokens, seconds, seconds_by_cause, devices (of the
            mesh that it was finished on), device_seconds (seconds times devices), flops, visual_tokens_per_image, held_out_loss; skipped
            (training samples left out, by cause; one is counted each time it is met) and skip_examples (the first of each cause, and what
            is wrong with it).
        eval: by task, what `evaluation.run` returned; empty until the last stage was scored.
        evaluation: the settings that `eval` was made with.
    """

    path: pathlib.Path
    recipe: Recipe
    stages: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    eval: dict[str, Any] = dataclasses.field(default_factory=dict)
    evaluation: dict[str, Any] | None = None

    @classmethod
    def open(cls, path: pathlib.Path, recipe: Recipe) -> "Summary":
        """The summary that an earlier process of the same run left, or an empty one. Raises InputError if it cannot be read."""
        if not path.exists():
            return cls(path, recipe)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["config_digest"] != digest(recipe):
                raise ValueError("it belongs to another recipe")
            return cls(path, recipe, content["stages"], content["eval"], content["evaluation"])
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

    def add_stage(self, stage: Stage, result: StageResult) -> None:
        """Writes a finished stage down, in place of what stood there of it."""
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
        self.write()

    def add_scores(self, scores: dict[str, Any]) -> None:
        """Writes the scores of the last stage down."""
        self.eval, self.evaluation = scores, to_plain(self.recipe.evaluation)
        self.write()

    def write(self) -> None:
        """Puts the file in place in one step."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "config_digest": digest(self.recipe),
            "seed": self.recipe.seed,
            "stages": self.stages,
            "eval": self.eval,
            "evaluation": self.evaluation,
            "versions": versions(),
            "hardware": hardware(),
        }
        write_json(self.path, content)


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what is computed; mmjax has none when it runs from a checkout that is not installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """What the run computes on."""
    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "machine": platform.machine(),
    }


def describe(scores: dict[str, Any]) -> list[str]:
    """The scores in words, a line per task."""
    lines = []
    for task, result in scores.items():
        measure = result.get("metric")
        by_type = ", ".join(f"{kind} {share:.3f}" for kind, share in result["by_type"].items())
        baselines = ", ".join(f"{name} {share:.3f}" for name, share in result["baselines"].items())
        if measure is None:
            text = f"{result['score']:.4f} of {result['n']:,} questions ({by_type})"
        else:
            text = f"{measure} {result['score']:.4f} on {result['n']:,} images ({by_type})"
        lines.append(f"{task}: {text}; baselines: {baselines or 'none'}{_likelihood(result)}")
    return lines


def _likelihood(result: dict[str, Any]) -> str:
    """How likely true answers are, where that was measured."""
    if "nll" not in result:
        return ""
    shuffled = result["nll_shuffled"]
    beside = "" if shuffled is None else f", {shuffled:.4f} beside other images"
    return f"; true captions: {result['nll']:.4f} nats per token{beside}, {result['nll_per_caption']:.2f} per caption"


def read_params(
    checkpoint: pathlib.Path,
    recipe_with_vocab: Recipe,
    shardings: Mapping[str, Sharding] | None = None,
) -> Params:
    """The parameters of a checkpoint folder of this recipe (with its vocabulary), or those that `shardings` names, read to where it says.

    Raises InputError if another recipe made it.
    """
    params, metadata = load_params(checkpoint, shardings)
    if metadata.get("config_digest") != digest(recipe_with_vocab):
        raise InputError(
            f"{checkpoint} was made by another recipe; name the one that made it, or its --workdir alone."
        )
    return params


def prepare_tokenizer(
    recipe: Recipe, folder: pathlib.Path, *, build: bool = True
) -> tuple[Tokenizer, Recipe]:
    """The tokenizer of a run and the recipe with a vocabulary for it.

    Args:
        folder: of the run. A tokenizer of words is kept there, so that the ids stay the same whatever becomes of the data.
        build: make one from the training text if there is none yet.

    Raises:
        InputError: it cannot be read or built, or a decoder has fewer tokens.
    """
    path = folder / "tokenizer.json"
    if recipe.tokenizer.kind != "words":
        tokenizer = vocabulary.make_tokenizer(recipe)
    elif path.exists() or not build:
        tokenizer = WordTokenizer.load(path)
    else:
        made = vocabulary.make_tokenizer(recipe)
        assert isinstance(made, WordTokenizer)
        made.save(path)
        tokenizer = made
    return tokenizer, vocabulary.fit(recipe, tokenizer)


def find_checkpoint(
    recipe: Recipe, workdir: Workdir, checkpoint: str | None
) -> tuple[Stage, pathlib.Path]:
    """The stage and folder of a checkpoint: the given one, or the newest of the last stage that has any.

    Raises:
        InputError: there is none.
    """
    if checkpoint is not None:
        folder = pathlib.Path(checkpoint).absolute()
        if not folder.is_dir() or not folder.name.isdecimal():
            there = "".join(_steps_in(place) for place in (folder, folder.parent))
            raise InputError(
                f"There is no checkpoint {checkpoint}: a folder checkpoints/<stage>/<step> is expected.{there}"
            )
        if folder.parent.name not in recipe.stages:
            raise InputError(
                f"{checkpoint} is a checkpoint of stage {folder.parent.name!r}; the recipe has {', '.join(recipe.stages)}."
            )
        return recipe.stages[folder.parent.name], folder
    for stage in reversed(recipe.stages.values()):
        if (newest := newest_step(workdir.checkpoints / stage.name)) is not None:
            return stage, workdir.checkpoints / stage.name / str(newest)
    raise InputError(
        f"There is no checkpoint in {workdir.path}: train first, or name one with --checkpoint."
    )


def _steps_in(folder: pathlib.Path) -> str:
    """A sentence; nothing where there are none."""
    found = sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())
    return f" {folder} has {', '.join(map(str, found))}." if found else ""


def newest_step(folder: pathlib.Path) -> int | None:
    """The step of the newest checkpoint of a stage, or None."""
    steps = (
        [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
        if folder.is_dir()
        else []
    )
    return max(steps, default=None)
