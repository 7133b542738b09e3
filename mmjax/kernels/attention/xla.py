"""Attention as two batched matrix products, which hold all scores."""

import functools

import jax
import jax.numpy as jnp

from mmjax.kernels.attention.mask import IntervalMask
from mmjax.typing import Array, Bool, Float

MASKED = -1e30  # finite, so that a row that sees nothing gives numbers (the door makes them zero) and not NaN
_MANY_MASKED = 128 * 128  # scores of a head: from here, a mask costs less where heads lie before rows


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask | None,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    length, keys = q.shape[1], k.shape[1]
    seen = None if mask is None else mask.dense(keys)
    alone = q.shape[2] == k.shape[2] and length > 1  # a head with keys of its own
    lie = _as_they_lie if alone and (mask is None or length * keys < _MANY_MASKED) else _heads_first
    return lie(q, k, v, functools.partial(_weights, seen=seen, scale=scale, softcap=softcap)).astype(q.dtype)


def _as_they_lie(q: Array, k: Array, v: Array, weights: functools.partial[Array]) -> Array:
    """Without moving anything. The axis that `vmap` adds, of size one, makes XLA fuse more of the gradient on a CPU."""

    def attend(q: Array) -> Array:
        return jnp.einsum("BNTS,BSNH->BTNH", weights(jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32), v), v)

    return jax.vmap(attend)(q[None])[0]


def _heads_first(q: Array, k: Array, v: Array, weights: functools.partial[Array]) -> Array:
    """The G query heads of a group are folded into the rows, so keys and values are never repeated."""
    batch, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    q = q.swapaxes(1, 2).reshape(batch, kv_heads, -1, head_dim)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    scores = jnp.einsum("BKRH,BKSH->BKRS", q, k, preferred_element_type=jnp.float32)
    out = jnp.einsum("BKRS,BKSH->BKRH", weights(scores, v), v)
    return out.reshape(batch, heads, length, head_dim).swapaxes(1, 2)


def _weights(
    scores: Float[Array, "B N R S"], v: Array, seen: Bool[Array, "B T S"] | None, scale: float, softcap: float | None
) -> Float[Array, "B N R S"]:
    """Rows are T, or G times T of a group: the mask is the same for each head. In the dtype of `v`."""
    scores *= scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if seen is not None:
        group = scores.shape[2] // seen.shape[1]
        scores = jnp.where(jnp.tile(seen, (1, group, 1))[:, None], scores, MASKED)
    return jax.nn.softmax(scores, axis=-1).astype(v.dtype)
