"""The training step of a synthetic stage, ready to be timed: one state for all batches of a model, whatever their length."""

import time

import jax
from synthetic import make_batch

from mmjax.base import host
from mmjax.models import parameters
from mmjax.recipe.recipe import Stage
from mmjax.training import state as training_state
from mmjax.training.step import make_train_step, one_at_a_time
from mmjax.typing import Batch


class MeasuredStep:
    """Steps on batches of one model; each shape of batch compiles a program of its own."""

    def __init__(self, stage: Stage):
        """stage: any of the model; its rows say nothing of those that are stepped on, but there must be as many."""
        self.stage = stage
        model_def, _ = parameters.abstract(stage.model)
        self._programs = 0  # that have been compiled

        def count() -> None:
            self._programs += 1

        self._step = make_train_step(model_def, stage, on_trace=count)
        self._state: training_state.TrainState | None = None

    def place(self, stage: Stage, seed: int = 0) -> Batch:
        """A batch of the stage's rows on the device."""
        assert (stage.model, stage.batch_size) == (self.stage.model, self.stage.batch_size)
        return jax.device_put(make_batch(stage, seed))

    def run(self, batch: Batch, number: int) -> float:
        """Seconds of so many steps, one behind the other, until the last is done."""
        state, self._state = self._state or self._begin(), None  # a step that fails has consumed it
        programs = self._programs
        begun = time.perf_counter()
        for _ in range(number):
            state, metrics = self._step(state, batch)
            if one_at_a_time():  # as in the training loop
                jax.block_until_ready(state)
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - begun
        self._state = state
        if self._programs > programs:
            host.after_compilation()  # as the training loop does
        return seconds

    def program(self, batch: Batch) -> str:
        """The compiled step as text."""
        return self._step.lower(self._state or self._begin(), batch).compile().as_text()

    def _begin(self) -> training_state.TrainState:
        def create(key: jax.Array) -> training_state.TrainState:
            return training_state.create(
                parameters.initialize(self.stage.model, key), self.stage, key
            )

        return jax.block_until_ready(jax.jit(create)(jax.random.key(0)))
