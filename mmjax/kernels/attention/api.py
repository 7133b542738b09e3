"""Attention by one function: checks the call, picks an implementation, or takes the one that is named.

IMPLEMENTATIONS lists them, with what each cannot do. A program may prefer one wherever it can serve (`prefer`); a call that names one which
cannot serve raises.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.errors import InputError
from mmjax.kernels.attention import cudnn, reference, splash, xla, xla_chunked
from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.placement import on_each_device
from mmjax.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class Choice:
    """By name, the implementation that serves wherever it can; None: the dispatcher's rules alone.

    Attributes:
        deterministic: results have the same bits every time, even where they could be had faster without.
    """

    attention: str | None = None
    deterministic: bool = True


_CURRENT = jax.make_user_context(default_value=Choice())
"""Part of what compiled functions are kept under: one that was traced under another choice is traced again."""


class Implementation(NamedTuple):
    """One way to compute attention.

    Attributes:
        compute: (q, k, v, mask, scale, softcap) -> [B, T, N, H].
        unsupported: (q, k, mask, softcap) -> why it cannot serve a call; None if it can.
        absent: why it cannot serve any call on this machine; None if it can.
        faster_in_any_order: compute takes `deterministic` as well, and may be faster without.
        any_padding: rows that see nothing and keys that none sees may hold anything, as they are made zero before, and the rows again
            after, which costs XLA nothing. A kernel makes the rows zero itself, and all must be finite.
        per_device: called on each device of a mesh for its own rows and heads, as the compiler cannot split it, or not well.
    """

    compute: Callable[..., Array]
    unsupported: Callable[[Any, Any, IntervalMask | None, float | None], str | None] = lambda *_: (
        None
    )
    absent: Callable[[], str | None] = lambda: None
    faster_in_any_order: bool = False
    any_padding: bool = False
    per_device: bool = False


def _on_hopper(*arrays: Any, **settings: Any) -> Array:
    from mmjax.kernels.attention.mosaic_gpu import call as kernels  # its imports take a while

    return kernels.attention(*arrays, **settings)


def _no_hopper() -> str | None:
    if (
        jax.default_backend() == "gpu"
        and getattr(jax.devices()[0], "compute_capability", "") == "9.0"
    ):
        return None
    return (
        f"it is made for GPUs of compute capability 9.0, and here is {jax.devices()[0].device_kind}"
    )


def _unsupported_on_hopper(
    q: Any, k: Any, mask: IntervalMask | None, softcap: float | None
) -> str | None:
    from mmjax.kernels.attention.mosaic_gpu import call as kernels

    return _no_hopper() or kernels.unsupported(q, k, k, mask, softcap=softcap)


IMPLEMENTATIONS = {
    "reference": Implementation(reference.attention, any_padding=True),
    "xla": Implementation(xla.attention, any_padding=True),
    "xla_chunked": Implementation(xla_chunked.attention, any_padding=True, per_device=True),
    "splash": Implementation(splash.attention, splash.unsupported, splash.absent, per_device=True),
    "cudnn": Implementation(cudnn.attention, cudnn.unsupported, cudnn.absent),
    "mosaic_gpu": Implementation(
        _on_hopper, _unsupported_on_hopper, _no_hopper, faster_in_any_order=True, per_device=True
    ),
}


_LOGGER = logging.getLogger(__name__)
# Of a head: up to so many, to hold them all is as fast or faster, and no weights are computed twice.
_FEW_SCORES = 256 * 512


@jax.named_scope("attention")
def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask | None = None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    implementation: str | None = None,
    deterministic: bool | None = None,
) -> Float[Array, "B T N H"]:
    """softmax(softcap(scale q k^T)) v over the keys that the mask shows; grouped-query where K < N.

    Args:
        mask: which keys a query row sees; None: all of them.
        scale: of the scores; None: H ** -0.5.
        softcap: bound c of the scores, c tanh(score / c); None: unbounded.
        implementation: a name in IMPLEMENTATIONS; None: the one that the program prefers (`prefer`) if it serves the call, or else the
            fastest that does.
        deterministic: False allows gradients that do not have the same bits twice, if that may be faster; None: as the program prefers
            (with the same bits, if it says nothing). Only "mosaic_gpu" makes use of it, for heads of up to 128. The others add in one order
            anyway; only "cudnn" does as XLA's settings say, whatever is asked for here.

    Returns:
        [B, T, N, H] in the dtype of q. A row that sees nothing is zero. What it holds, and what keys hold that nobody sees, does not matter
        to XLA's implementations, be it NaN; to kernels, for which that would be another pass over all arrays, it must be finite.

    Raises:
        ValueError: shapes do not fit each other, or the implementation is unknown or cannot serve the call; none is taken in its place.
    """
    _check(q, k, v, mask)
    if 0 in (*q.shape, *k.shape):
        return jnp.zeros_like(q)
    name = _pick(q, k, mask, softcap) if implementation is None else implementation
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"there is no attention implementation {name!r}; there are {', '.join(sorted(IMPLEMENTATIONS))}"
        )
    chosen = IMPLEMENTATIONS[name]
    if (reason := chosen.unsupported(q, k, mask, softcap)) is not None:
        raise ValueError(f"attention implementation {name!r} cannot serve this call: {reason}")
    freedom = {}
    if chosen.faster_in_any_order:
        freedom["deterministic"] = (
            _CURRENT.value.deterministic if deterministic is None else deterministic
        )
    compute = functools.partial(
        chosen.compute,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        softcap=softcap,
        **freedom,
    )
    serve = functools.partial(on_each_device, compute) if chosen.per_device else compute
    if mask is None or mask.form in ("full", "causal") or not chosen.any_padding:
        return serve(q, k, v, mask)
    return _without_padding(serve, q, k, v, mask)


def _without_padding(
    serve: Callable[..., Array], q: Array, k: Array, v: Array, mask: IntervalMask
) -> Array:
    """With zeros where a row sees nothing and where a key is seen by none: what stands there may be anything, even NaN, which times a
    weight of zero would be NaN."""
    rows, keys = (
        mask.sees_something(k.shape[1])[..., None, None],
        mask.is_seen(k.shape[1])[..., None, None],
    )
    return jnp.where(
        rows, serve(jnp.where(rows, q, 0), jnp.where(keys, k, 0), jnp.where(keys, v, 0), mask), 0
    )


def _check(q: Array, k: Array, v: Array, mask: IntervalMask | None) -> None:
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(
            f"queries {q.shape}, keys {k.shape} and values {v.shape} must have four axes: [B, T, N, H], [B, S, K, H] twice"
        )
    if k.dtype != v.dtype:
        raise ValueError(f"keys are {k.dtype} and values {v.dtype}; they must be of one type")
    if not k.shape[2] or q.shape[2] % k.shape[2]:
        raise ValueError(
            f"{q.shape[2]} query heads cannot share {k.shape[2]} key/value heads: the second must divide the first"
        )
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"queries {q.shape}, keys {k.shape} and values {v.shape} do not fit: they are [B, T, N, H], [B, S, K, H] twice"
        )
    if mask is not None and mask.start.shape != q.shape[:2]:
        raise ValueError(
            f"the mask has the intervals of {mask.start.shape} rows, the queries have {q.shape[:2]}"
        )


def prefer(
    name: str | None = None, *, deterministic: bool = True
) -> contextlib.AbstractContextManager[None]:
    """Within, calls that name no implementation use this one wherever it can serve them; what else is picked is logged.

    Args:
        deterministic: of calls that do not say; see `attention`.

    Raises:
        InputError: there is none of that name, or it serves no call on this machine.
    """
    if name is not None and name not in IMPLEMENTATIONS:
        raise InputError(
            f"there is no attention implementation {name!r}; there are {', '.join(sorted(IMPLEMENTATIONS))}"
        )
    if name is not None and (reason := IMPLEMENTATIONS[name].absent()) is not None:
        raise InputError(f"attention implementation {name!r} cannot be used here: {reason}")
    return _CURRENT(Choice(attention=name, deterministic=deterministic))


def _pick(q: Array, k: Array, mask: IntervalMask | None, softcap: float | None) -> str:
    """The fastest implementation that serves a call where it will probably run: on the default backend."""
    backend, preferred = jax.default_backend(), _CURRENT.value.attention
    # "mosaic_gpu" is picked by nobody yet: it has been compiled for Hopper and interpreted, but has not run on a GPU.
    candidates = [preferred] if preferred is not None else []
    candidates += ["splash"] if backend == "tpu" and preferred != "splash" else []
    for name in candidates:
        reason = IMPLEMENTATIONS[name].unsupported(q, k, mask, softcap)
        if reason is None:
            break
        level = logging.WARNING if name == preferred else logging.INFO
        _log_once(level, f"attention: {name!r} cannot serve some calls, and another does: {reason}")
    else:
        name = "xla" if q.shape[1] * k.shape[1] <= _FEW_SCORES else "xla_chunked"
    _log_once(logging.INFO, f"attention on {backend}: {name}")
    return name


@functools.cache
def _log_once(level: int, text: str) -> None:
    _LOGGER.log(level, text)
