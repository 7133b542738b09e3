"""Attention on TPUs: splash attention, which ships with jax, for the masks that it knows without holding them.

It has one kernel for the forward and two for the backward pass, skips tiles that a causal mask hides, and compares segment ids in the
others. It takes no scale: queries are scaled before, and where they are not float32 and the scale is no power of two (heads of 128:
2 ** -3.5), that rounds them once more.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from mmjax.kernels.attention.mask import IntervalMask
from mmjax.typing import Array, Float, Int

_TILE = 128  # rows and keys come in multiples of it
_LARGEST = 512


def absent() -> str | None:
    """Why the kernel cannot serve any call on this machine; None if it can."""
    return (
        None
        if jax.default_backend() == "tpu"
        else f"there is no TPU here (the backend is {jax.default_backend()})"
    )


def unsupported(q: Any, k: Any, mask: IntervalMask | None, softcap: float | None) -> str | None:
    """Why the kernel cannot serve a call; None if it can."""
    del k, softcap
    if mask is not None and mask.form == "intervals":
        return "it knows full and causal masks and packed segments, and no others"
    if q.shape[-1] < 64:
        return f"heads have {q.shape[-1]} channels, and it needs 64 at least"
    return None


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask | None,
    scale: float,
    softcap: float | None,
    *,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    batch, length, heads, _ = q.shape
    keys, kv_heads = k.shape[1:3]
    grouped = rearrange(q * scale, "B T (K G) H -> B K G T H", K=kv_heads)
    rows_more, keys_more = -length % _TILE, -keys % _TILE
    grouped = jnp.pad(grouped, ((0, 0), (0, 0), (0, 0), (0, rows_more), (0, 0)))
    k, v = (jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, keys_more), (0, 0))) for x in (k, v))
    causal = mask is not None and mask.form != "full"
    kernel = _kernel(
        heads // kv_heads, length + rows_more, keys + keys_more, causal, softcap, interpret
    )
    ids = _segments(mask, batch, length, keys, rows_more, keys_more)
    of_head = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    out = jax.vmap(of_head)(grouped, k, v, ids)[:, :, :, :length]
    out = rearrange(out, "B K G T H -> B T (K G) H").astype(q.dtype)
    return out if mask is None else jnp.where(mask.sees_something(keys)[..., None, None], out, 0)


def _segments(
    mask: IntervalMask | None, batch: int, length: int, keys: int, rows_more: int, keys_more: int
) -> Any:
    """Ids of rows and keys: a row sees keys of its own id. No row may see nothing, or its softmax would be 0 / 0; so rows that were added
    are like the last one, or see the keys that were added."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    def padded(ids: Int[Array, "B some"], more: int, value: int) -> Int[Array, "B more"]:
        return jnp.pad(ids, ((0, 0), (0, more)), constant_values=value)

    if mask is not None and mask.form == "segments":
        ids = padded(mask.start + 1, rows_more, 0)
        return splash.SegmentIds(ids, ids)
    rows, columns = jnp.ones((batch, length), jnp.int32), jnp.ones((batch, keys), jnp.int32)
    return splash.SegmentIds(padded(rows, rows_more, 1), padded(columns, keys_more, 0))


@functools.lru_cache(maxsize=64)
def _kernel(
    heads: int, rows: int, keys: int, causal: bool, softcap: float | None, interpret: bool
) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    kind = masks.CausalMask if causal else masks.FullMask
    tall, wide = _divisor(rows), _divisor(keys)
    sizes = splash.BlockSizes(
        block_q=tall, block_kv=wide, block_kv_compute=wide, block_q_dkv=tall, block_kv_dkv=wide, block_kv_dkv_compute=wide,
        block_q_dq=tall, block_kv_dq=wide,
    )  # fmt: skip
    with jax.ensure_compile_time_eval():  # the tables of tiles are constants, whatever traces first
        mask = masks.MultiHeadMask([kind((rows, keys)) for _ in range(heads)])
        return splash.make_splash_mqa(
            mask,
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=softcap,
            interpret=interpret,
        )


def _divisor(length: int) -> int:
    """The largest multiple of a tile that divides a padded length and is not above the largest one."""
    return max(size for size in range(_TILE, _LARGEST + 1, _TILE) if length % size == 0)
