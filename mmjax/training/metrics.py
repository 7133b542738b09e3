"""What a stage measures of itself: cross entropy and metrics as sums that merge, and wall time by cause.

Cross entropy is summed; an average divides once, by the number of targets of the whole batch. Metrics of steps merge in the same way, so
that a mean over a log interval is the mean over all of its tokens: they are metrics of `clu`. Wall time survives a restart: its totals are
saved with the state.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.typing import NO_TARGET, Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenSums:
    """Sums over the targets of some rows.

    Attributes:
        loss: [] float32, negative log likelihood in nats.
        targets: [] int32, number of targets.
        correct: [] int32, targets that the largest logit names.
    """

    loss: Float[Array, ""]
    targets: Int[Array, ""]
    correct: Int[Array, ""]

    @classmethod
    def zero(cls) -> "TokenSums":
        return cls(jnp.float32(0), jnp.int32(0), jnp.int32(0))

    def __add__(self, other: "TokenSums") -> "TokenSums":
        return jax.tree.map(jnp.add, self, other)

    @property
    def mean_loss(self) -> Float[Array, ""]:
        """Nats per target; 0 where there is none."""
        return self.loss / jnp.maximum(self.targets, 1)


@jax.named_scope("loss")
def cross_entropy(logits: Float[Array, "*rows V"], targets: Int[Array, "*rows"]) -> TokenSums:
    """Sums of the cross entropy; targets of -1 are ignored.

    The target's logit is picked by comparison rather than by gather: forward and backward stay element-wise, also with the vocabulary split
    over devices.
    """
    logits = logits.astype(jnp.float32)
    vocabulary = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    supervised = targets != NO_TARGET
    picked = jnp.sum(jnp.where(vocabulary == targets[..., None], logits, 0.0), axis=-1)
    loss = jax.nn.logsumexp(logits, axis=-1) - picked
    return TokenSums(
        loss=jnp.sum(jnp.where(supervised, loss, 0.0)),
        targets=jnp.sum(supervised, dtype=jnp.int32),
        correct=jnp.sum(supervised & (jnp.argmax(logits, axis=-1) == targets), dtype=jnp.int32),
    )


@flax.struct.dataclass
class Loss(clu.metrics.Average):
    """Nats per target; NaN where nothing was counted."""

    @classmethod
    def from_model_output(cls, *, sums: TokenSums, **_: object) -> Self:
        return cls(sums.loss, sums.targets)


@flax.struct.dataclass
class Perplexity(Loss):
    """exp of the nats per target."""

    def compute(self) -> Float[Array, ""]:
        return jnp.exp(super().compute())


@flax.struct.dataclass
class TokenAccuracy(clu.metrics.Average):
    """Share of targets that the largest logit names."""

    @classmethod
    def from_model_output(cls, *, sums: TokenSums, **_: object) -> Self:
        return cls(sums.correct.astype(jnp.float32), sums.targets)


@flax.struct.dataclass
class GradientNorm(clu.metrics.Average):
    """Mean over steps with a finite update of the global norm, before clipping."""

    @classmethod
    def from_model_output(cls, *, gradient_norm: Array, finite: Array, **_: object) -> Self:
        return cls(jnp.where(finite, gradient_norm, 0.0), finite.astype(jnp.int32))


@flax.struct.dataclass
class Newest(clu.metrics.Metric):
    """What the newest step gave, finite or not: an array, or several by name."""

    value: Any

    def merge(self, other: Self) -> Self:
        return other

    def compute(self) -> Any:
        return self.value


@flax.struct.dataclass
class ModuleGradientNorms(Newest):
    """Gradient norm of each module, by first path component: it shows where a NaN came from."""

    @classmethod
    def from_model_output(cls, *, module_gradient_norms: dict[str, Array], **_: object) -> Self:
        return cls(module_gradient_norms)


@flax.struct.dataclass
class LearningRate(Newest):
    """Of the update."""

    @classmethod
    def from_model_output(cls, *, learning_rate: Array, **_: object) -> Self:
        return cls(learning_rate)


@flax.struct.dataclass
class NonFinite(clu.metrics.Metric):
    """Steps whose loss, or else whose gradient, was not finite; their update was withheld.

    Attributes:
        loss, gradient: [] int32; a step counts in one of them at most.
    """

    loss: Int[Array, ""]
    gradient: Int[Array, ""]

    @classmethod
    def from_model_output(cls, *, finite_loss: Array, finite: Array, **_: object) -> Self:
        return cls((~finite_loss).astype(jnp.int32), (finite_loss & ~finite).astype(jnp.int32))

    def merge(self, other: Self) -> Self:
        return jax.tree.map(jnp.add, self, other)

    def compute(self) -> Int[Array, ""]:
        return self.loss + self.gradient


@flax.struct.dataclass
class TokenMetrics(clu.metrics.Collection):
    """Means over targets: of one evaluation step, or of several merged. `loss.total` and `loss.count` are the sums."""

    loss: Loss
    token_accuracy: TokenAccuracy
    perplexity: Perplexity


@flax.struct.dataclass
class StepMetrics(clu.metrics.Collection):
    """Of one training step, or of several merged. Steps that are not finite are counted and are part of no mean."""

    loss: Loss
    token_accuracy: TokenAccuracy
    perplexity: Perplexity
    gradient_norm: GradientNorm
    module_gradient_norms: ModuleGradientNorms
    learning_rate: LearningRate
    nonfinite_steps: NonFinite


def step_metrics(
    sums: TokenSums, module_norms: dict[str, Array], gradient_norm: Array, learning_rate: Array
) -> StepMetrics:
    """Metrics of one training step."""
    finite_loss = jnp.isfinite(sums.loss)
    finite = finite_loss & jnp.isfinite(gradient_norm)
    return StepMetrics.single_from_model_output(
        sums=jax.tree.map(lambda value: jnp.where(finite, value, 0), sums),
        gradient_norm=gradient_norm,
        module_gradient_norms=module_norms,
        learning_rate=learning_rate,
        finite_loss=finite_loss,
        finite=finite,
    )


@jax.jit
def merge[M: (TokenMetrics, StepMetrics)](left: M, right: M) -> M:
    """Of the steps of both, `right` being the newer; one small dispatch, no transfer to the host."""
    return left.merge(right)


def to_sums(metrics: StepMetrics) -> list[float]:
    """The numbers of all metrics, in order. Waits for the device."""
    parts = [getattr(metrics, name) for name in _METRICS]
    return [leaf.item() for leaf in jax.tree.leaves(jax.device_get(parts))]


def from_sums(sums: list[float], like: StepMetrics) -> StepMetrics:
    """The metrics whose numbers `to_sums` gave, with the types of `like`."""
    leaves, structure = jax.tree.flatten([getattr(like, name) for name in _METRICS])
    values = [np.asarray(value, leaf.dtype) for value, leaf in zip(sums, leaves, strict=True)]
    parts = jax.tree.unflatten(structure, values)
    return like.replace(**dict(zip(_METRICS, parts, strict=True)))


_METRICS = tuple(
    StepMetrics.__annotations__
)  # clu adds a count of merges, which nothing here reads


def summary(metrics: TokenMetrics | StepMetrics) -> dict[str, float]:
    """Plain numbers for a log line: "loss", "token_accuracy", ..., "gradient_norm/vision". Waits for the device."""
    computed = jax.device_get(metrics.compute())
    norms = computed.pop("module_gradient_norms", {})
    return {name: float(value) for name, value in computed.items()} | {
        f"gradient_norm/{name}": float(value) for name, value in norms.items()
    }


CAUSES = ("compile", "input", "step", "evaluation", "save", "other")


class Chrono:
    """Charges every moment to exactly one cause; what nothing else claims is "other"."""

    def __init__(
        self,
        seconds: Mapping[str, float] | None = None,
        device_seconds: float = 0.0,
        devices: int = 1,
    ):
        """
        Args:
            seconds, device_seconds: totals of earlier processes of the same stage.
            devices: that this process keeps busy.
        """
        self._seconds = dict.fromkeys(CAUSES, 0.0) | dict(seconds or {})
        self.devices = devices
        self._before = sum(self._seconds.values())
        self._device_seconds_before = device_seconds
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
