"""Attention and its gradients in float64 with numpy, from whole matrices of scores; inputs and masks to try kernels with."""

import jax.numpy as jnp
import numpy as np

from mmjax.kernels.attention import IntervalMask

NAMES = ("out", "dq", "dk", "dv")


def attention(q, k, v, dout, mask, scale, softcap=None):
    """(out, dq, dk, dv) in float64; k and v may have fewer heads than q."""
    q, k, v, dout = (np.asarray(x, np.float64) for x in (q, k, v, dout))
    group = q.shape[2] // k.shape[2]
    many_k, many_v = (np.repeat(x, group, axis=2) for x in (k, v))
    seen = (
        np.ones((1, 1, 1, 1), bool) if mask is None else np.asarray(mask.dense(k.shape[1]))[:, None]
    )
    scores = scale * np.einsum("btnh,bsnh->bnts", q, many_k)
    slope = np.ones_like(scores)
    if softcap is not None:
        slope = 1 - np.tanh(scores / softcap) ** 2
        scores = softcap * np.tanh(scores / softcap)
    scores = np.where(seen, scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
    weights /= np.maximum(weights.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    out = np.einsum("bnts,bsnh->btnh", weights, many_v)
    dweights = np.einsum("btnh,bsnh->bnts", dout, many_v)
    delta = np.einsum("btnh,btnh->bnt", dout, out)[..., None]
    dscores = weights * (dweights - delta) * slope * scale
    dq = np.einsum("bnts,bsnh->btnh", dscores, many_k)
    dk = np.einsum("bnts,btnh->bsnh", dscores, q)
    dv = np.einsum("bnts,btnh->bsnh", weights, dout)
    return out, dq, *(x.reshape(*k.shape[:3], group, k.shape[3]).sum(axis=3) for x in (dk, dv))


def error(found, wanted):
    """The norm of the difference, relative to the norm of what is wanted."""
    wanted = np.asarray(wanted, np.float64)
    return np.linalg.norm(np.asarray(found, np.float64) - wanted) / max(
        np.linalg.norm(wanted), 1e-30
    )


def inputs(
    rows, keys, heads, kv_heads, head_dim, *, batch=1, louder=1.0, seed=0, dtype=jnp.bfloat16
):
    """q, k, v and the gradient of the result; `louder` multiplies the scores."""
    draw = np.random.default_rng(seed)
    shapes = [
        (batch, rows, heads, head_dim),
        (batch, keys, kv_heads, head_dim),
        (batch, keys, kv_heads, head_dim),
        (batch, rows, heads, head_dim),
    ]
    q, k, v, dout = (draw.normal(size=shape) for shape in shapes)
    return tuple(jnp.asarray(x, dtype) for x in (q * louder, k, v, dout))


def segments(*rows):
    """IntervalMask of packed rows, each a list of (length, prefix); a segment of prefix -1 is padding."""
    numbers, prefixes = [], []
    for row in rows:
        numbers.append(
            [
                number if prefix >= 0 else 0
                for number, (length, prefix) in enumerate(row, 1)
                for _ in range(length)
            ]
        )
        prefixes.append([max(prefix, 0) for length, prefix in row for _ in range(length)])
    return IntervalMask.from_segments(
        jnp.asarray(numbers, jnp.int32), jnp.asarray(prefixes, jnp.int32)
    )


def causal(rows):
    return IntervalMask.from_segments(jnp.ones((1, rows), jnp.int32))


def windows(rows, keys, width, *, seed=0):
    """Every row sees `width` keys somewhere."""
    start = np.random.default_rng(seed).integers(0, keys - width + 1, (1, rows))
    return IntervalMask(jnp.asarray(start, jnp.int32), jnp.asarray(start + width, jnp.int32))
