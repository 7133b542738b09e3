"""Attention as two batched matrix products, which hold all scores, with its own backward pass.

R rows of a key/value head: T, or G times T where G query heads share it, so that keys and values are never repeated. With

    E = exp(S - max S), Z = sum_s E, O = E V / Z            (S: scaled, bounded, masked scores)
    dV = E^T (dO / Z), dS = E * (dO V^T - sum_h dO * O) / Z

E is never divided: what is divided by Z has H columns and not S, and E is the only array of scores that the backward pass is
given (with a bound of the scores, its slope, too).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from mmjax.kernels.attention.mask import IntervalMask
from mmjax.typing import Array, Bool, Float

# Finite, so that a row that sees nothing gives numbers (api.py makes them zero) and not NaN.
MASKED = -1e30


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask | None,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    group = q.shape[2] // k.shape[2]
    rows = rearrange(q, "B T (K G) H -> B K (G T) H", G=group)
    seen = None if mask is None else jnp.tile(mask.dense(k.shape[1]), (1, group, 1))[:, None]
    out = _attend(rows, k.swapaxes(1, 2), v.swapaxes(1, 2), seen, scale, softcap)
    return rearrange(out, "B K (G T) H -> B T (K G) H", G=group)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(
    q: Float[Array, "B K R H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    seen: Bool[Array, "B 1 R S"] | None,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B K R H"]:
    return _forward(q, k, v, seen, scale, softcap)[0]


def _forward(
    q: Array, k: Array, v: Array, seen: Array | None, scale: float, softcap: float | None
) -> tuple[Float[Array, "B K R H"], tuple[Any, ...]]:
    scores = scale * jnp.einsum("BKRH,BKSH->BKRS", q, k, preferred_element_type=jnp.float32)
    slope = None
    if softcap is not None:
        bounded = jnp.tanh(scores / softcap)
        scores, slope = softcap * bounded, 1.0 - bounded**2
    if seen is not None:
        scores = jnp.where(seen, scores, MASKED)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = (
        jnp.einsum(
            "BKRS,BKSH->BKRH", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        / total
    )
    return out.astype(q.dtype), (q, k, v, weights, total, out, slope)


def _backward(
    scale: float, softcap: float | None, saved: tuple[Any, ...], gradient: Float[Array, "B K R H"]
) -> tuple[Array, Array, Array, None]:
    q, k, v, weights, total, out, slope = saved
    gradient = gradient.astype(jnp.float32)
    along = jnp.sum(
        gradient * out, axis=-1, keepdims=True
    )  # of a row's gradient, what a change of Z takes away
    of_weights = jnp.einsum(
        "BKRH,BKSH->BKRS", gradient.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    of_scores = weights * (of_weights - along) * (scale / total)
    if slope is not None:
        of_scores = of_scores * slope
    # Two products read it: without the barrier XLA:CPU computes it for each of them.
    of_scores = jax.lax.optimization_barrier(of_scores.astype(q.dtype))
    dv = _columns((gradient / total).astype(v.dtype), weights.astype(v.dtype))
    return jnp.einsum("BKRS,BKSH->BKRH", of_scores, k), _columns(q, of_scores), dv, None


def _columns(
    narrow: Float[Array, "B K R H"], wide: Float[Array, "B K R S"]
) -> Float[Array, "B K S H"]:
    """wide^T narrow. XLA:CPU gives a product to its fast library if the left operand's contracted axis is its last one: the narrow operand
    is turned and stands left, and so is the result.
    """
    return jnp.einsum("BKHR,BKRS->BKHS", narrow.swapaxes(2, 3), wide).swapaxes(2, 3)


_attend.defvjp(_forward, _backward)
