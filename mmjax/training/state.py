"""The state of a stage: everything a training step changes, and the frozen parameters beside it."""

import dataclasses
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.recipe import Stage
from mmjax.training import optimizer
from mmjax.typing import Array, Int, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """One pytree, saved and restored whole.

    Attributes:
        trainable: float32 parameters that the stage trains, by path.
        frozen: all other parameters. Where the stage computes in bfloat16 their matrices are stored in it, so a frozen decoder of 70
            billion parameters costs 140 GB over all devices: no float32 copy, no gradient, no moments.
        optimizer: Adam's moments and count, for the trainable parameters only.
        step: [] int32, steps of this stage that were taken, those whose update was withheld (see `training.step`) included.
        rng: [2] uint32, key data (`jax.random.wrap_key_data`) of the stage.
    """

    trainable: Params
    frozen: Params
    optimizer: optax.ScaleByAdamState
    step: Int[Array, ""]
    rng: Array

    @property
    def params(self) -> Params:
        """Every parameter by path; no array is copied."""
        return self.trainable | self.frozen


@dataclasses.dataclass(frozen=True)
class Start:
    """What a stage begins with.

    Attributes:
        given: arrays that the parameters are made from, on the mesh already; the stage consumes them. Empty where all is drawn afresh.
        make: of `given`, every parameter of the stage's model by path. Pure; compiled, so that no device ever holds more than its part.
    """

    given: Params
    make: Callable[[Params], Params]


def begin(start: Start, stage: Stage, key: Array, shardings: TrainState) -> TrainState:
    """The state in which a stage starts, made where it will lie. Raises InputError as `create`."""
    with warnings.catch_warnings():  # an array that a transition has resized leaves its memory to nobody
        warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
        made = jax.jit(lambda given, key: create(start.make(given), stage, key), out_shardings=shardings, donate_argnums=0)
        return made(start.given, key)


def create(params: Params, stage: Stage, key: Array) -> TrainState:
    """The state in which a stage starts. Pure: `jax.eval_shape` of it gives the abstract state, `jax.jit` of it a sharded one.

    Args:
        params: every parameter of `stage.model`, by path. Arrays that have the right dtype already are taken over, not copied: the first
            step consumes them.
        key: of `jax.random.key`.

    Raises:
        InputError: a glob of `trainable` or of an optimizer group matches no parameter.
    """
    trainable, frozen = partition(params, stage)
    compute_dtype = jnp.dtype(stage.model.compute_dtype)
    trainable = {path: jnp.asarray(value, jnp.float32) for path, value in trainable.items()}
    return TrainState(
        trainable=trainable,
        frozen={path: jnp.asarray(value, _frozen_dtype(path, value, compute_dtype)) for path, value in frozen.items()},
        optimizer=optimizer.make_optimizer(stage).init(trainable),
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.key_data(key),
    )


def partition(params: Params, stage: Stage) -> tuple[Params, Params]:
    """Parameters that the stage trains, and the others.

    Raises:
        InputError: a glob of `stage.trainable` matches no parameter.
    """
    for pattern in stage.trainable:
        if not any(parameters.matches(path, (pattern,)) for path in params):
            raise InputError(f"stage {stage.name!r}: trainable has {pattern!r}, which matches no parameter. {_examples(params)}")
    if not stage.trainable:
        raise InputError(f"stage {stage.name!r}: trainable is empty, so there is nothing to train.")
    trainable = {path: value for path, value in params.items() if parameters.matches(path, stage.trainable)}
    return trainable, {path: value for path, value in params.items() if path not in trainable}


def _frozen_dtype(path: str, value: Array, compute_dtype: jnp.dtype) -> jnp.dtype:
    # A matrix is cast to the compute dtype before every product anyway, so storing the cast changes no result. Norms compute in float32 and
    # vectors weigh nothing.
    return compute_dtype if optimizer.logical_rank(path, value) >= 2 else jnp.dtype(jnp.float32)


def _examples(params: Params) -> str:
    shown = sorted({path.split("/")[0] for path in params})
    return f"Paths look like {min(params)!r} and begin with {', '.join(shown)}."
