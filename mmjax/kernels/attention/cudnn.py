"""Attention by cuDNN, through jax, for the two masks that need no array: everything, and plain causal."""

from typing import Any

import jax
import jax.numpy as jnp

from mmjax.kernels.attention.mask import IntervalMask
from mmjax.typing import Array, Float

_LARGEST_HEAD = 256


def absent() -> str | None:
    """Why cuDNN cannot serve any call on this machine; None if it can."""
    return (
        None
        if jax.default_backend() == "gpu"
        else f"there is no NVIDIA GPU here (the backend is {jax.default_backend()})"
    )


def unsupported(q: Any, k: Any, mask: IntervalMask | None, softcap: float | None) -> str | None:
    """Why cuDNN cannot serve a call; None if it can."""
    if mask is not None and mask.form not in ("full", "causal"):
        return "it would need the mask as an array of all scores; it serves full and plain causal masks"
    if softcap is not None:
        return "it does not bound scores"
    if q.dtype not in (jnp.bfloat16, jnp.float16) or k.dtype != q.dtype:
        return f"it reads bfloat16 and float16, not {q.dtype} and {k.dtype}"
    if q.shape[-1] % 8 or q.shape[-1] > _LARGEST_HEAD:
        return f"heads have {q.shape[-1]} channels; it needs a multiple of 8 up to {_LARGEST_HEAD}"
    return absent()


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask | None,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    del softcap
    causal = mask is not None and mask.form == "causal"
    return jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=causal, implementation="cudnn"
    )
