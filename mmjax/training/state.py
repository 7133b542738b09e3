"""The state of a stage: everything that a training step changes, and the frozen parameters beside it.

The optimizer is AdamW with a schedule, parameter groups and clipping, over flat dictionaries of parameters.
"""

import dataclasses
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging
from clu import parameter_overview
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.distributed.mesh import parameter_shardings
from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import VLMConfig
from mmjax.recipe.recipe import OptimizerConfig, ParameterGroup, Stage
from mmjax.typing import Array, Bool, Float, Int, Params

STACKED = "layers"  # a path component: the parameters below it carry a leading axis of layers


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW (arXiv:1711.05101): p <- p - learning_rate(step) * scale * (adam(g) + weight_decay * p).

    The learning rate follows the step of the stage, not Adam's own count, so a withheld update does not shift the schedule.

    Attributes:
        steps: of the stage; the cosine ends there.
    """

    config: OptimizerConfig
    steps: int

    def init(self, trainable: Params) -> optax.ScaleByAdamState:
        """Zero moments in float32.

        Raises:
            InputError: the glob of a group matches no trainable parameter.
        """
        for group in self.config.groups:
            if not any(parameters.matches(path, (group.match,)) for path in trainable):
                raise InputError(
                    f"optimizer group {group.match!r} matches no trainable parameter; they look like {min(trainable)!r}."
                )
        return self._adam.init(trainable)

    def learning_rate(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """Of the update that takes the stage from `step` to `step + 1`. Warm-up rises by equal parts and peaks at its last update."""
        config = self.config
        peak, warmup = config.learning_rate, config.warmup_steps
        # It begins at one part: no update is wasted on a learning rate of zero.
        rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
        after: optax.Schedule
        if config.schedule == "cosine":
            after = optax.cosine_decay_schedule(
                peak, max(self.steps - warmup, 1), config.final_scale
            )
        elif config.schedule == "cosine_over_all":
            after = self._cosine_over_all
        else:
            after = optax.constant_schedule(peak)
        return jnp.float32(optax.join_schedules((rise, after), (warmup,))(step))

    def _cosine_over_all(self, since_warmup: Int[Array, ""] | int) -> Float[Array, ""]:
        """The rest of a cosine that began with the stage, scaled to meet the peak where warm-up ends."""
        config, step = self.config, since_warmup + self.config.warmup_steps
        fallen, at_peak = (
            1.0 + jnp.cos(jnp.pi * jnp.minimum((at + 2.0) / self.steps, 1.0))
            for at in (step, config.warmup_steps - 1.0)
        )
        left = fallen / jnp.maximum(at_peak, jnp.finfo(jnp.float32).tiny)
        return config.learning_rate * (config.final_scale + (1.0 - config.final_scale) * left)

    @jax.named_scope("optimizer")
    def update(
        self,
        gradient: Params,
        state: optax.ScaleByAdamState,
        trainable: Params,
        step: Int[Array, ""],
        apply: Bool[Array, ""] | bool = True,
    ) -> tuple[Params, optax.ScaleByAdamState]:
        """New parameters and moments, or the old ones, bit for bit, where `apply` is false."""
        config, rate = self.config, self.learning_rate(step)
        if config.clip_norm is not None:
            # A norm of the same squares as the metrics': the compiler sums them once.
            clip = optax.clip_by_global_norm(config.clip_norm)
            gradient, _ = clip.update(gradient, optax.EmptyState())
        _, new = self._adam.update(gradient, state)
        state = jax.tree.map(lambda new, old: jnp.where(apply, new, old), new, state)
        if jax.default_backend() == "cpu":
            # The new moments take the place of the old ones. XLA:CPU would compute them once more where it moves the parameters, from the
            # old ones, of which it would have to make copies: with the direction that optax gives beside the moments, a step of the default
            # pre-training takes 2 % longer. (A GPU does all of it in one pass.)
            state = jax.lax.optimization_barrier(state)
        mean = optax.tree.bias_correction(state.mu, config.beta1, state.count)
        square = optax.tree.bias_correction(state.nu, config.beta2, state.count)

        def moved(path: str, value: Array) -> Array:
            # Adam's direction (arXiv:1412.6980, algorithm 1), of moments that the gradient has been added to.
            direction = mean[path] / (jnp.sqrt(square[path]) + config.epsilon)
            group = self.group(path)
            decay = weight_decay(path, value, config, group)
            return value - rate * (group.learning_rate_scale if group else 1.0) * (
                direction + decay * value
            )

        found = {path: moved(path, value) for path, value in trainable.items()}
        return {
            path: jnp.where(apply, found[path], value) for path, value in trainable.items()
        }, state

    @property
    def _adam(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.config.beta1, self.config.beta2, self.config.epsilon)

    def group(self, path: str) -> ParameterGroup | None:
        """The first group whose glob matches the path."""
        return next(
            (group for group in self.config.groups if parameters.matches(path, (group.match,))),
            None,
        )


def make_optimizer(stage: Stage) -> Optimizer:
    """The optimizer of a stage."""
    return Optimizer(stage.optimizer, stage.steps)


def weight_decay(
    path: str,
    value: Array | jax.ShapeDtypeStruct,
    config: OptimizerConfig,
    group: ParameterGroup | None,
) -> float:
    """Weight decay of a parameter: its group's, or else the config's; always 0 for scales, biases and other vectors."""
    if logical_rank(path, value) < 2 or path.rsplit("/", 1)[-1] in ("scale", "bias"):
        return 0.0
    return (
        config.weight_decay if group is None or group.weight_decay is None else group.weight_decay
    )


def logical_rank(path: str, value: Array | jax.ShapeDtypeStruct) -> int:
    """Axes of one layer's parameter: stacking [D] biases to [layers, D] does not make them a matrix."""
    return len(value.shape) - (STACKED in path.split("/"))


def squared_norms(values: Mapping[str, Array]) -> dict[str, Float[Array, ""]]:
    """Sum of squares (float32) of each module: the first component of a path, such as "vision"."""
    sums: dict[str, Array] = {}
    for path, value in sorted(values.items()):
        module = path.split("/")[0]
        sums[module] = sums.get(module, jnp.float32(0)) + jnp.sum(
            jnp.square(value.astype(jnp.float32))
        )
    return sums


def norms(squares: Mapping[str, Array]) -> dict[str, Float[Array, ""]]:
    """Square roots of `squared_norms`."""
    return {module: jnp.sqrt(value) for module, value in squares.items()}


def global_norm(squares: Iterable[Array]) -> Float[Array, ""]:
    """Norm of everything that `squared_norms` summed."""
    return jnp.sqrt(sum(squares, start=jnp.float32(0)))


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


def overview(state: TrainState) -> str:
    """Tables of the parameters, trained and frozen: path, shape, dtype, number of values, and which mesh axes split which axis. Needs no
    values: the state may be abstract."""
    parts = {"Trained": state.trainable, "Frozen": state.frozen}
    return "\n".join(
        f"{title}\n{parameter_overview.get_parameter_overview(params, include_stats='sharding')}\n"
        for title, params in parts.items()
        if params
    )


@dataclasses.dataclass(frozen=True)
class InitialParams:
    """What a stage begins with.

    Attributes:
        given: a pytree of the arrays that the parameters are made from, on the mesh already; the stage consumes them. Empty where all is
            drawn afresh.
        make: of `given`, every parameter of the stage's model by path. Pure; compiled, so that no device ever holds more than its part.
    """

    given: Any
    make: Callable[[Any], Params]


def begin(start: InitialParams, stage: Stage, key: Array, shardings: TrainState) -> TrainState:
    """The state in which a stage starts, made where it will lie. Raises InputError as `create`."""
    made = jax.jit(
        lambda given, key: create(start.make(given), stage, key),
        out_shardings=shardings,
        donate_argnums=0,
    )
    with warnings.catch_warnings():
        # The memory of an array that a transition resizes cannot be used again.
        warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
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
        # A frozen matrix is cast to the compute dtype before every product anyway, so storing the cast changes no result. Norms compute in
        # float32 and vectors weigh nothing.
        frozen={
            path: jnp.asarray(
                value, compute_dtype if logical_rank(path, value) >= 2 else jnp.float32
            )
            for path, value in frozen.items()
        },
        optimizer=make_optimizer(stage).init(trainable),
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
            parts = ", ".join(sorted({path.split("/")[0] for path in params}))
            raise InputError(
                f"stage {stage.name!r}: trainable has {pattern!r}, which matches no parameter. "
                f"Paths look like {min(params)!r} and begin with {parts}."
            )
    if not stage.trainable:
        raise InputError(f"stage {stage.name!r}: trainable is empty, so there is nothing to train.")
    trainable = {
        path: value for path, value in params.items() if parameters.matches(path, stage.trainable)
    }
    return trainable, {path: value for path, value in params.items() if path not in trainable}


def state_shardings(
    state: TrainState, places: Mapping[str, NamedSharding], mesh: Mesh
) -> TrainState:
    """Shardings of a state, concrete or abstract: moments lie where their parameter does, counters everywhere."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def of(path: tuple[jax.tree_util.KeyEntry, ...], _: object) -> NamedSharding:
        last = path[-1]
        return places[last.key] if isinstance(last, jax.tree_util.DictKey) else everywhere

    return jax.tree_util.tree_map_with_path(of, state)


def param_shardings(
    model: VLMConfig, mesh: Mesh, needed: Collection[str] | None = None
) -> dict[str, NamedSharding]:
    """Where the parameters of a model lie on a mesh, by path; of all of them, or of those that are needed."""
    shapes, axes = parameters.abstract(model)[1], parameters.logical_axes(model)
    places = parameter_shardings(shapes, axes, mesh)[0]
    return {path: place for path, place in places.items() if needed is None or path in needed}


def abstract_state(stage: Stage, mesh: Mesh, key: Array) -> TrainState:
    """Shapes, dtypes and shardings of the state of a stage; nothing is allocated. Raises InputError as `create`."""
    shapes = parameters.abstract(stage.model)[1]
    places, notes = parameter_shardings(shapes, parameters.logical_axes(stage.model), mesh)
    for note in notes:
        logging.warning("%s", note)
    state = jax.eval_shape(lambda params: create(params, stage, key), shapes)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        state_shardings(state, places, mesh),
    )
