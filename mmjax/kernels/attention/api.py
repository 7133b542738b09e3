"""The one door to attention: checks the call, picks an implementation, or obeys the one that is named."""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from mmjax.kernels.attention import cudnn, reference, splash, xla, xla_chunked
from mmjax.kernels.attention.mask import IntervalMask
from mmjax.typing import Array, Float


class Implementation(NamedTuple):
    """One way to compute attention.

    Attributes:
        compute: (q, k, v, mask, scale, softcap) -> [B, T, N, H].
        unsupported: (q, k, mask, softcap) -> why it cannot serve a call; None if it can.
        faster_in_any_order: compute takes `deterministic` as well, and may be faster without.
    """

    compute: Callable[..., Array]
    unsupported: Callable[[Any, Any, IntervalMask | None, float | None], str | None] = lambda *_: None
    faster_in_any_order: bool = False


def _on_hopper(*call: Any, deterministic: bool) -> Array:
    from mmjax.kernels.attention.mosaic_gpu import call as kernels  # its imports take a while

    return kernels.attention(*call, deterministic=deterministic)


def _unsupported_on_hopper(q: Any, k: Any, mask: IntervalMask | None, softcap: float | None) -> str | None:
    from mmjax.kernels.attention.mosaic_gpu import call as kernels

    if jax.default_backend() != "gpu" or getattr(jax.devices()[0], "compute_capability", "") != "9.0":
        return f"it is made for GPUs of compute capability 9.0, and here is {jax.devices()[0].device_kind}"
    return kernels.unsupported(q, k, k, mask, softcap=softcap)


IMPLEMENTATIONS = {
    "reference": Implementation(reference.attention),
    "xla": Implementation(xla.attention),
    "xla_chunked": Implementation(xla_chunked.attention),
    "splash": Implementation(splash.attention, splash.unsupported),
    "cudnn": Implementation(cudnn.attention, cudnn.unsupported),
    "mosaic_gpu": Implementation(_on_hopper, _unsupported_on_hopper, faster_in_any_order=True),
}

_FEW_SCORES = xla_chunked.ROWS * xla_chunked.KEYS


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask | None = None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    implementation: str | None = None,
    deterministic: bool = True,
) -> Float[Array, "B T N H"]:
    """softmax(softcap(scale q k^T)) v over the keys that the mask shows; grouped-query where K < N.

    Args:
        mask: which keys a query row sees; None: all of them.
        scale: of the scores; None: H ** -0.5.
        softcap: bound c of the scores, c tanh(score / c); None: unbounded.
        implementation: a name in IMPLEMENTATIONS; None picks the fastest that serves the call.
        deterministic: False allows gradients that do not have the same bits twice, if that may be faster. Only "mosaic_gpu" makes use of
            it, for heads of up to 128. The others add in one order anyway; only "cudnn" does as XLA's settings say, whatever is asked
            for here.

    Returns:
        [B, T, N, H] in the dtype of q. A row that sees nothing is zero.

    Raises:
        ValueError: shapes do not fit each other, or the implementation is unknown or cannot serve the call; none is taken in its place.
    """
    _check(q, k, v, mask)
    name = _pick(q, k, mask, softcap) if implementation is None else implementation
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"there is no attention implementation {name!r}; there are {', '.join(sorted(IMPLEMENTATIONS))}")
    compute, unsupported, faster_in_any_order = IMPLEMENTATIONS[name]
    if (reason := unsupported(q, k, mask, softcap)) is not None:
        raise ValueError(f"attention implementation {name!r} cannot serve this call: {reason}")
    freedom = {"deterministic": deterministic} if faster_in_any_order else {}
    return compute(q, k, v, mask, q.shape[-1] ** -0.5 if scale is None else scale, softcap, **freedom)


def _check(q: Array, k: Array, v: Array, mask: IntervalMask | None) -> None:
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads cannot share {k.shape[2]} key/value heads: the second must divide the first")
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"queries {q.shape}, keys {k.shape} and values {v.shape} do not fit: they are [B, T, N, H], [B, S, K, H] twice")
    if mask is not None and mask.start.shape != q.shape[:2]:
        raise ValueError(f"the mask has the intervals of {mask.start.shape} rows, the queries have {q.shape[:2]}")


def _pick(q: Array, k: Array, mask: IntervalMask | None, softcap: float | None) -> str:
    """The fastest implementation that serves a call where it will probably run: on the default backend."""
    for name in _preferred(jax.default_backend()):
        reason = IMPLEMENTATIONS[name].unsupported(q, k, mask, softcap)
        if reason is None:
            return _logged(name, jax.default_backend())
        _logged(f"not {name}: {reason}", jax.default_backend())
    # As fast where one tile holds all scores, and the weights need not be computed twice.
    few = q.shape[1] * k.shape[1] <= _FEW_SCORES
    return _logged("xla" if few else "xla_chunked", jax.default_backend())


def _preferred(backend: str) -> tuple[str, ...]:
    # "mosaic_gpu" is not among them: it has been compiled for Hopper and interpreted, but has not run on a GPU yet.
    return ("splash",) if backend == "tpu" else ()


@functools.cache
def _logged(what: str, backend: str) -> str:
    """Says once what was picked."""
    logging.getLogger(__name__).info("attention on %s: %s", backend, what)
    return what
