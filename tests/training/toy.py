"""A run small enough to train in a second: real rows, the real step, a model of a few thousand parameters."""

import contextlib
import functools
import json
import pathlib
from dataclasses import dataclass, replace

import jax
import numpy as np
from PIL import Image
from rich.console import Console

from mmjax.data.packing.rows import Rows, make_rows
from mmjax.data.sources.jsonl import JsonlSource
from mmjax.data.text.tokenizer import WordTokenizer
from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.linear import LinearConfig
from mmjax.recipe.recipe import (
    CheckpointConfig,
    DataConfig,
    LoggingConfig,
    OptimizerConfig,
    Recipe,
    Stage,
)
from mmjax.training.logging import make_trackers
from mmjax.training.loop import StageFiles, StageResult, train_stage
from mmjax.training.state import InitialParams
from mmjax.typing import Params

COLOURS = ("red", "green", "blue", "white", "black", "pink")
TOKENIZER = WordTokenizer.build([f"a {colour} square" for colour in COLOURS])
STEPS = 6


@dataclass
class NoSignal:
    """Stands for a StopSignal that is set by hand."""

    requested: bool = False

    def at_once(
        self, message: str, *, saves: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """No signal comes."""
        return contextlib.nullcontext()


def write_data(folder: pathlib.Path) -> pathlib.Path:
    """Twenty images of one colour each, with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    lines = []
    for number in range(20):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
            folder / f"{number}.png"
        )
        lines.append(
            json.dumps(
                {"image": f"{number}.png", "text": f"a {COLOURS[number % len(COLOURS)]} square"}
            )
        )
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def make_recipe(
    data: pathlib.Path,
    *,
    width: int = 8,
    steps: int = STEPS,
    checkpoint: CheckpointConfig,
    logging: LoggingConfig,
) -> Recipe:
    """One stage on the data that `write_data` wrote, with a frozen part, packing and images."""
    model = VLMConfig(
        ViTConfig(image_size=8, patch_size=4, width=8, layers=1, heads=2, mlp_width=8),
        LinearConfig(kind="linear", feature_layers=(1,)),
        DecoderConfig(
            vocabulary=-(-TOKENIZER.vocabulary // 8) * 8,
            width=width,
            layers=1,
            heads=2,
            kv_heads=1,
            head_dim=4,
            mlp_width=8,
        ),
        compute_dtype="float32",
    )
    source = JsonlSource("jsonl", str(data / "captions.jsonl"), str(data))
    stage = Stage(
        "toy",
        model,
        DataConfig({"captions": source}, text_length=12, images_per_row=2, holdout=5, flip=True),
        OptimizerConfig(1e-2, warmup_steps=2, weight_decay=0.1),
        steps=steps,
        batch_size=2,
        trainable=("connector/*", "decoder/*"),
    )
    return Recipe("toy", "", {"toy": stage}, checkpoint=checkpoint, logging=logging)


def small_recipe(data: pathlib.Path, *, every: int = 2, **changes: object) -> Recipe:
    """Saves every `every` steps, logs every 4, measures the held-out loss every 3."""
    logging = replace(
        LoggingConfig(
            every=4, evaluate_every=3, trackers=("jsonl",), hang_timeout=0.0, peak_flops=1e12
        )
    )
    recipe = make_recipe(
        data, checkpoint=CheckpointConfig(every=every, keep_last=2), logging=logging
    )
    stage = replace(recipe.stages["toy"], **changes)
    return replace(recipe, stages={"toy": stage})


@functools.cache
def first_params(model: VLMConfig) -> Params:
    """Drawn once a process: each run that draws its own traces and compiles one program more."""
    drawn = parameters.initialize(model, jax.random.key(1))
    return {path: np.asarray(value) for path, value in drawn.items()}


def train(
    recipe: Recipe,
    workdir: pathlib.Path,
    *,
    stop=None,
    console: Console | None = None,
    stop_after=None,
    edit_rows=None,
) -> StageResult:
    """Trains the stage in a folder, as far as it goes."""
    workdir.mkdir(parents=True, exist_ok=True)
    (stage,) = recipe.stages.values()
    rows, held_out = (
        make_rows(stage.data, stage.model, TOKENIZER, recipe.seed, part)
        for part in ("train", "holdout")
    )
    if edit_rows is not None:
        rows, held_out = edit_rows(rows, held_out)
    tracker = make_trackers(recipe, workdir)
    try:
        return train_stage(
            stage,
            recipe,
            StageFiles(
                checkpoints=workdir / "checkpoints",
                parameters=workdir / "parameters.txt",
                dump=workdir / "nonfinite.json",
            ),
            start=lambda mesh: InitialParams(first_params(stage.model), lambda params: params),
            key=jax.random.key(2),
            rows=rows,
            held_out=held_out,
            tracker=tracker,
            stop=stop or NoSignal(),
            console=console or Console(quiet=True),
            stop_after=stop_after,
        )
    finally:
        tracker.close()


def metric_lines(workdir: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock."""
    clock = ("time", "steps_per_second", "tokens_per_second", "images_per_second", "mfu")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.startswith(clock)}
        for line in lines
    ]


__all__ = [
    "STEPS",
    "NoSignal",
    "Rows",
    "make_recipe",
    "metric_lines",
    "small_recipe",
    "train",
    "write_data",
]
