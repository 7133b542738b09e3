"""Cross entropy as sums: whoever averages divides once, by the number of targets of the whole batch."""

import dataclasses

import jax
import jax.numpy as jnp

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
