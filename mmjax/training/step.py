"""One training step and one evaluation step, each a single compiled function.

The loss of a batch is the sum of the cross entropy over its targets, divided by the number of targets of the whole batch: over all devices
and over all parts of gradient accumulation. Sums are accumulated and the division happens once, so how a batch is cut never changes a
gradient.
"""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec

from mmjax.distributed.mesh import ROW_AXES
from mmjax.errors import InputError
from mmjax.recipe.recipe import Stage
from mmjax.training.metrics import StepMetrics, TokenMetrics, TokenSums, cross_entropy, step_metrics
from mmjax.training.state import TrainState, global_norm, make_optimizer, norms, squared_norms
from mmjax.typing import Array, Batch, Float, Int, Params


class Model(Protocol):
    """What a step needs of a model."""

    def supervised_logits(self, batch: Batch) -> tuple[Float[Array, "B t V"], Int[Array, "B t"]]:
        """Logits (float32) and targets (-1: none) of every position that may have a target."""


class TrainedModelDef(Protocol):
    """Rebuilds a model from its parameters, at trace time."""

    def merge(self, params: Params) -> Model: ...


def make_train_step(
    model_def: TrainedModelDef,
    stage: Stage,
    shardings: TrainState | None = None,
    *,
    on_trace: Callable[[], None] = lambda: None,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """The compiled step (state, batch) -> (state, metrics). It consumes the state it is given: its buffers are reused.

    An update whose loss or gradient norm is not finite, or whose batch has no target, is withheld: parameters and moments stay bit for bit
    what they were, the metrics say so, and the step is counted.

    Args:
        model_def: of `stage.model`.
        stage: `batch_size` rows in `gradient_accumulation_steps` equal parts, one after the other.
        shardings: of the new state, `state.state_shardings`; None: left to the compiler.
        on_trace: called when the step is about to be compiled: for the first batch, and for one of other shapes.

    Raises:
        InputError: gradient_accumulation_steps does not divide batch_size.
    """
    if (
        stage.gradient_accumulation_steps < 1
        or stage.batch_size % stage.gradient_accumulation_steps
    ):
        raise InputError(
            f"stage {stage.name!r}: batch_size {stage.batch_size} must be divisible by gradient_accumulation_steps "
            f"{stage.gradient_accumulation_steps}."
        )
    update = make_optimizer(stage)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        on_trace()
        gradient, sums = _gradient_sums(model_def, state, batch, stage.gradient_accumulation_steps)
        gradient = jax.tree.map(lambda value: value / jnp.maximum(sums.targets, 1), gradient)
        squares = squared_norms(gradient)
        norm = global_norm(squares.values())
        metrics = step_metrics(sums, norms(squares), norm, update.learning_rate(state.step))
        apply = (metrics.nonfinite_steps.compute() == 0) & (sums.targets > 0)
        trainable, moments = update.update(
            gradient, state.optimizer, state.trainable, state.step, apply
        )
        return TrainState(trainable, state.frozen, moments, state.step + 1, state.rng), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def make_evaluation_step(
    model_def: TrainedModelDef, *, on_trace: Callable[[], None] = lambda: None
) -> Callable[[Params, Batch], TokenMetrics]:
    """The compiled function (params, batch) -> sums over the batch's targets; `metrics.merge` adds those of several batches. on_trace as
    in `make_train_step`."""

    def step(params: Params, batch: Batch) -> TokenMetrics:
        on_trace()
        return TokenMetrics.single_from_model_output(sums=_token_sums(model_def, params, batch))

    return jax.jit(step)


def one_at_a_time() -> bool:
    """Whether a step is to be waited for before the next is begun: on a CPU, where a second one would hold its temporaries beside those of
    the first and end no sooner. An accelerator needs the next step in time, so that it never waits for the host."""
    return jax.default_backend() == "cpu"


def is_done(metrics: StepMetrics) -> bool:
    """Whether the step that gives these metrics has ended, without waiting for it."""
    return all(leaf.is_ready() for leaf in jax.tree.leaves(metrics))


def _token_sums(model_def: TrainedModelDef, params: Params, batch: Batch) -> TokenSums:
    return cross_entropy(*model_def.merge(params).supervised_logits(batch))


def _gradient_sums(
    model_def: TrainedModelDef, state: TrainState, batch: Batch, parts: int
) -> tuple[Params, TokenSums]:
    """Sums over the whole batch: of the gradient of the trainable parameters, and of the loss."""

    def loss(trainable: Params, part: Batch) -> tuple[Float[Array, ""], TokenSums]:
        sums = _token_sums(model_def, trainable | state.frozen, part)
        return sums.loss, sums

    differentiate = jax.grad(loss, has_aux=True)
    if parts == 1:
        return differentiate(state.trainable, batch)

    def accumulate(
        total: tuple[Params, TokenSums], part: Batch
    ) -> tuple[tuple[Params, TokenSums], None]:
        return jax.tree.map(jnp.add, total, differentiate(state.trainable, part)), None

    zero = (jax.tree.map(jnp.zeros_like, state.trainable), TokenSums.zero())
    total, _ = jax.lax.scan(accumulate, zero, split_rows(batch, parts))
    return total


def split_rows(batch: Batch, parts: int) -> Batch:
    """[B, ...] to [parts, B / parts, ...]: part i takes rows i, i + parts, ..., so that every device keeps the rows it holds."""

    def split(value: Array) -> Array:
        value = rearrange(value, "(rows parts) ... -> parts rows ...", parts=parts)
        if jax.sharding.get_abstract_mesh().empty:
            return value
        return jax.lax.with_sharding_constraint(value, PartitionSpec(None, ROW_AXES))

    return jax.tree.map(split, batch)
