"""AdamW with a schedule, parameter groups and clipping, over flat dictionaries of parameters."""

import dataclasses
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import optax

from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.recipe import OptimizerConfig, ParameterGroup, Stage
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
                raise InputError(f"optimizer group {group.match!r} matches no trainable parameter; they look like {min(trainable)!r}.")
        return self._adam.init(trainable)

    def learning_rate(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """Of the update that takes the stage from `step` to `step + 1`. Warm-up rises by equal parts and peaks at its last update."""
        config = self.config
        peak, warmup = config.learning_rate, config.warmup_steps
        step = jnp.asarray(step, jnp.float32)
        if config.schedule == "cosine":
            progress = jnp.clip((step - warmup) / max(self.steps - warmup, 1), 0.0, 1.0)
            after = config.final_scale + (1.0 - config.final_scale) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        elif config.schedule == "cosine_over_all":
            fallen, at_peak = (1.0 + jnp.cos(jnp.pi * jnp.minimum((at + 2.0) / self.steps, 1.0)) for at in (step, warmup - 1.0))
            after = config.final_scale + (1.0 - config.final_scale) * fallen / jnp.maximum(at_peak, jnp.finfo(jnp.float32).tiny)
        else:
            after = jnp.ones_like(step)
        rise = (step + 1.0) / max(warmup, 1)  # no update is wasted on a learning rate of zero
        return peak * jnp.where(step < warmup, rise, after)

    @jax.named_scope("optimizer")
    def update(
        self,
        gradient: Params,
        state: optax.ScaleByAdamState,
        trainable: Params,
        step: Int[Array, ""],
        gradient_norm: Float[Array, ""],
        apply: Bool[Array, ""] | bool = True,
    ) -> tuple[Params, optax.ScaleByAdamState]:
        """New parameters and moments, or the old ones, bit for bit, where `apply` is false.

        `gradient_norm` is the global norm of `gradient`, which the caller has at hand.
        """
        if self.config.clip_norm is not None:
            scale = jnp.minimum(1.0, self.config.clip_norm / jnp.maximum(gradient_norm, jnp.finfo(jnp.float32).tiny))
            gradient = {path: value * scale for path, value in gradient.items()}
        _, new = self._adam.update(gradient, state, trainable)
        state = jax.tree.map(lambda new, old: jnp.where(apply, new, old), new, state)
        if jax.default_backend() == "cpu":
            # The new moments take the place of the old ones. XLA:CPU would compute them once more where it moves the parameters, from the
            # old ones, of which it would have to make copies. (A GPU does all of it in one pass.)
            state = jax.lax.optimization_barrier(state)
        rate = self.learning_rate(step)
        moved = {path: self._moved(path, value, self._direction(path, state), rate) for path, value in trainable.items()}
        return {path: jnp.where(apply, moved[path], value) for path, value in trainable.items()}, state

    def _direction(self, path: str, state: optax.ScaleByAdamState) -> Array:
        """Adam's (arXiv:1412.6980, algorithm 1), of moments that the gradient has been added to."""
        mean, square = (
            moments[path] / (1.0 - decay**state.count) for moments, decay in ((state.mu, self.config.beta1), (state.nu, self.config.beta2))
        )
        return mean / (jnp.sqrt(square) + self.config.epsilon)

    @property
    def _adam(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.config.beta1, self.config.beta2, self.config.epsilon)

    def _moved(self, path: str, value: Array, direction: Array, rate: Float[Array, ""]) -> Array:
        group = self.group(path)
        decay = weight_decay(path, value, self.config, group)
        return value - rate * (group.learning_rate_scale if group else 1.0) * (direction + decay * value)

    def group(self, path: str) -> ParameterGroup | None:
        """The first group whose glob matches the path."""
        return next((group for group in self.config.groups if parameters.matches(path, (group.match,))), None)


def make_optimizer(stage: Stage) -> Optimizer:
    """The optimizer of a stage."""
    return Optimizer(stage.optimizer, stage.steps)


def weight_decay(path: str, value: Array | jax.ShapeDtypeStruct, config: OptimizerConfig, group: ParameterGroup | None) -> float:
    """Weight decay of a parameter: its group's, or else the config's; always 0 for scales, biases and other vectors."""
    if logical_rank(path, value) < 2 or path.rsplit("/", 1)[-1] in ("scale", "bias"):
        return 0.0
    return config.weight_decay if group is None or group.weight_decay is None else group.weight_decay


def logical_rank(path: str, value: Array | jax.ShapeDtypeStruct) -> int:
    """Axes of one layer's parameter: stacking [D] biases to [layers, D] does not make them a matrix."""
    return len(value.shape) - (STACKED in path.split("/"))


def squared_norms(values: Mapping[str, Array]) -> dict[str, Float[Array, ""]]:
    """Sum of squares (float32) of each module: the first component of a path, such as "vision"."""
    sums: dict[str, Array] = {}
    for path, value in sorted(values.items()):
        module = path.split("/")[0]
        sums[module] = sums.get(module, jnp.float32(0)) + jnp.sum(jnp.square(value.astype(jnp.float32)))
    return sums


def norms(squares: Mapping[str, Array]) -> dict[str, Float[Array, ""]]:
    """Square roots of `squared_norms`."""
    return {module: jnp.sqrt(value) for module, value in squares.items()}


def global_norm(squares: Iterable[Array]) -> Float[Array, ""]:
    """Norm of everything that `squared_norms` summed."""
    return jnp.sqrt(sum(squares, start=jnp.float32(0)))


@jax.jit
def parameter_norms(params: Params) -> dict[str, Float[Array, ""]]:
    """Norm of each module's parameters, for a log line: one pass over them, so not part of every step."""
    return norms(squared_norms(params))
