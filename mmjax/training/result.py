"""Wall time by cause: where the seconds of a stage went. Survives a restart: the totals are saved with the state.

What a stage's training begins with, where it stands, and what comes of it.
"""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Self

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from mmjax.data.packing.rows import Rows
from mmjax.distributed import mesh as mesh_axes
from mmjax.errors import NonFiniteError
from mmjax.models import parameters
from mmjax.recipe.recipe import Stage
from mmjax.training import metrics
from mmjax.training import state as training_state
from mmjax.training.metrics import StepMetrics
from mmjax.training.state import TrainState
from mmjax.typing import Array, Params

CAUSES = ("compile", "input", "step", "evaluation", "save", "other")


class Chrono:
    """Charges every moment to exactly one cause; what nothing else claims is "other"."""

    def __init__(
        self,
        seconds: Mapping[str, float] | None = None,
        device_seconds: float | None = None,
        devices: int = 1,
    ):
        """
        Args:
            seconds, device_seconds: totals of earlier processes of the same stage; without the latter, they had as many devices.
            devices: that this process keeps busy.
        """
        self._seconds = dict.fromkeys(CAUSES, 0.0) | dict(seconds or {})
        self.devices = devices
        self._before = sum(self._seconds.values())
        self._device_seconds_before = (
            self._before * devices if device_seconds is None else device_seconds
        )
        self._cause = "other"
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def charge(self, cause: str, *, in_the_end: Callable[[], str] | None = None) -> Iterator[None]:
        """Charges the time inside the context to `cause`; an enclosing cause is paused meanwhile.

        Args:
            in_the_end: the cause after all, asked when the context is left; it must not raise. What was read off before stays where it was.
        """
        assert cause in CAUSES, cause
        outer = self._switch(cause)
        try:
            yield
        finally:
            if in_the_end is not None:
                self._cause = in_the_end()
                assert self._cause in CAUSES, self._cause
            self._switch(outer)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by cause, up to now."""
        self._switch(self._cause)
        return dict(self._seconds)

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def device_seconds(self, seconds: Mapping[str, float]) -> float:
        """Seconds times devices, at a reading of `seconds`. A stage that went on on another number of devices adds up both."""
        return self._device_seconds_before + (sum(seconds.values()) - self._before) * self.devices

    def _switch(self, cause: str) -> str:
        now = time.perf_counter()
        self._seconds[self._cause] += now - self._since
        self._since, outer, self._cause = now, self._cause, cause
        return outer


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
    def of(
        cls, at: Position, stage: Stage, params: Params, chrono: Chrono, flops: float, rows: Rows
    ) -> Self:
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
    places, notes = mesh_axes.parameter_shardings(
        shapes, parameters.logical_axes(stage.model), mesh
    )
    for note in notes:
        logging.warning("%s", note)
    state = jax.eval_shape(lambda params: training_state.create(params, stage, key), shapes)
    shardings = training_state.state_shardings(state, places, mesh)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, shardings
    )


def check_finite(
    found: StepMetrics, stage: Stage, rows: Rows, first: int, dump: pathlib.Path
) -> None:
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
        "metrics": {
            name: value if np.isfinite(value) else str(value)
            for name, value in metrics.summary(found).items()
        },
        "samples": [rows.sample_ids(row) for row in range(first, first + stage.batch_size)],
    }
    dump.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    raise NonFiniteError(
        f"The {content['what']} of step {content['step']} of stage {stage.name!r} is not finite. Its update was not applied; the last "
        f"saved state is good. The samples of the batch are listed in {dump}."
    )
