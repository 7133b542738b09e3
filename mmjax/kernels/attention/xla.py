"""Attention as two batched matrix products. The G query heads of a group are folded into the rows, so keys and values are never
repeated.
"""

import jax
import jax.numpy as jnp

from mmjax.kernels.attention.mask import IntervalMask
from mmjax.typing import Array, Float

MASKED = -1e30  # finite, so that a row that sees nothing gives numbers (the door makes them zero) and not NaN


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask | None,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    batch, length, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    group = heads // kv_heads
    exact = q.dtype == jnp.float32  # otherwise the product would be rounded once more
    q = (q * scale if exact else q).swapaxes(1, 2).reshape(batch, kv_heads, group * length, head_dim)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    scores = jnp.einsum("BKTH,BKSH->BKTS", q, k, preferred_element_type=jnp.float32)
    scores = scores if exact else scores * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if mask is not None:
        seen = jnp.tile(mask.dense(keys), (1, group, 1))[:, None]
        scores = jnp.where(seen, scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("BKTS,BKSH->BKTH", weights, v)
    return out.reshape(batch, heads, length, head_dim).swapaxes(1, 2).astype(q.dtype)
