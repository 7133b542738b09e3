"""The definition: heads repeated, scores in float32, one softmax. What every other implementation is tested against."""

import jax
import jax.numpy as jnp

from mmjax.kernels.attention.mask import IntervalMask
from mmjax.typing import Array, Float


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask | None,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    group = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, group, axis=2).astype(jnp.float32) for x in (k, v))
    scores = jnp.einsum("BTNH,BSNH->BNTS", q.astype(jnp.float32), k, precision="highest") * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    seen = jnp.ones((1, 1, 1, 1), bool) if mask is None else mask.dense(k.shape[1])[:, None]
    weights = jnp.where(seen, jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1), 0.0)
    return jnp.einsum("BNTS,BSNH->BTNH", weights, v, precision="highest").astype(q.dtype)
