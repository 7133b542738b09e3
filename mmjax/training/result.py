"""What a stage's training begins with, where it stands, and what comes of it."""

import dataclasses
import json
import pathlib
from typing import Self

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from mmjax import mesh_axes
from mmjax.data.rows import Rows
from mmjax.errors import NonFiniteError
from mmjax.models import parameters
from mmjax.recipe import Stage
from mmjax.training import metrics, sharding
from mmjax.training import state as training_state
from mmjax.training.chrono import Chrono
from mmjax.training.metrics import StepMetrics
from mmjax.training.state import TrainState
from mmjax.typing import Array, Params


@dataclasses.dataclass(frozen=True)
class StageFiles:
    """Where a stage keeps things: `checkpoints` (a folder of its own) and `dump` (written if the loss is not finite)."""

    checkpoints: pathlib.Path
    dump: pathlib.Path


@dataclasses.dataclass
class Position:
    """Where a stage stands; part of its checkpoints.

    Attributes:
        step: steps that were taken; row: index of the next data row.
        tokens: that were trained on, text and visual, padding not counted.
        held_out_loss: nats per target when it was last measured, which was after step `evaluated_at`.
    """

    step: int = 0
    row: int = 0
    tokens: int = 0
    held_out_loss: float | None = None
    evaluated_at: int | None = None


@dataclasses.dataclass(frozen=True)
class StageResult:
    """What a stage did, over all the processes that worked on it.

    Attributes:
        samples: rows that were trained on; tokens: text and visual ones in them, padding not counted.
        seconds: wall time by cause (`chrono.CAUSES`).
        devices: of the mesh that the last process trained on; device_seconds: wall time times devices, of every process.
        flops: of all steps, by the rules of `training.flops`.
        held_out_loss: nats per target at the end; None: nothing is held out, or the stage is not finished.
        finished: all steps are done.
        skipped: training samples left out, by cause; skip_examples: the first of each cause, and what is wrong with it.
    """

    params: Params
    steps: int
    samples: int
    tokens: int
    seconds: dict[str, float]
    devices: int
    device_seconds: float
    flops: float
    held_out_loss: float | None
    finished: bool
    skipped: dict[str, int]
    skip_examples: dict[str, str]

    @classmethod
    def of(cls, at: Position, stage: Stage, params: Params, chrono: Chrono, flops: float, rows: Rows) -> Self:
        """The result of a stage that stands at `at`."""
        finished = at.step >= stage.steps
        loss = at.held_out_loss if finished else None
        seconds = chrono.seconds
        return cls(
            params=params,
            steps=at.step,
            samples=at.row,
            tokens=at.tokens,
            seconds=seconds,
            devices=chrono.devices,
            device_seconds=chrono.device_seconds(seconds),
            flops=flops,
            held_out_loss=loss,
            finished=finished,
            skipped=rows.skipped,
            skip_examples=rows.skip_examples,
        )


def abstract_state(stage: Stage, mesh: Mesh, key: Array) -> TrainState:
    """Shapes, dtypes and shardings of the state of a stage; nothing is allocated. Raises InputError as `state.create`."""
    shapes = parameters.abstract(stage.model)[1]
    places, notes = mesh_axes.parameter_shardings(shapes, parameters.logical_axes(stage.model), mesh)
    for note in notes:
        logging.warning("%s", note)
    state = jax.eval_shape(lambda params: training_state.create(params, stage, key), shapes)
    shardings = sharding.state_shardings(state, places, mesh)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, shardings)


def check_finite(found: StepMetrics, stage: Stage, rows: Rows, first: int, dump: pathlib.Path) -> None:
    """Raises NonFiniteError, and writes down which samples were in the batch, if a step's loss or gradient was not finite.

    Args:
        found: of one step. Its two flags are read as they are: a computation with them would queue behind the step after it.
        first: the first row of its batch; dump: the file to write.
    """
    bad_loss, bad_gradient = int(found.nonfinite_steps.loss), int(found.nonfinite_steps.gradient)
    if not bad_loss and not bad_gradient:
        return
    content = {
        "stage": stage.name,
        "step": first // stage.batch_size + 1,
        "what": "loss" if bad_loss else "gradient",
        "metrics": {name: value if np.isfinite(value) else str(value) for name, value in metrics.summary(found).items()},
        "samples": [rows.sample_ids(row) for row in range(first, first + stage.batch_size)],
    }
    dump.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    raise NonFiniteError(
        f"The {content['what']} of step {content['step']} of stage {stage.name!r} is not finite. Its update was not applied; the last "
        f"saved state is good. The samples of the batch are listed in {dump}."
    )
