"""summary.json: what a run cost and scored. Written after every stage, so that an interrupted run knows which are done."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
from typing import Any

import jax

from mmjax.errors import InputError
from mmjax.recipe import Recipe, Stage
from mmjax.recipe_json import digest
from mmjax.schema import to_plain
from mmjax.training.result import StageResult
from mmjax.workdir import write_json

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
            raise InputError(f"{path} cannot be read: {error!r}. Without it the run starts its bookkeeping anew: remove it.") from None

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
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
    }


def describe(scores: dict[str, Any]) -> list[str]:
    """The scores in words, a line per task."""
    lines = []
    for task, result in scores.items():
        measure = result.get("measure")
        by_type = ", ".join(f"{kind} {share:.3f}" for kind, share in result["by_type"].items())
        baselines = ", ".join(f"{name} {share:.3f}" for name, share in result["baselines"].items())
        if measure is None:
            text = f"{result['score']:.4f} of {result['n']:,} questions ({by_type})"
        else:
            text = f"{measure} {result['score']:.4f} on {result['n']:,} pictures ({by_type})"
        lines.append(f"{task}: {text}; baselines: {baselines or 'none'}{_likelihood(result)}")
    return lines


def _likelihood(result: dict[str, Any]) -> str:
    """How likely true answers are, where that was measured."""
    if "nll" not in result:
        return ""
    shuffled = result["nll_shuffled"]
    beside = "" if shuffled is None else f", {shuffled:.4f} beside other pictures"
    return f"; true captions: {result['nll']:.4f} nats per token{beside}, {result['nll_per_caption']:.2f} per caption"
