"""The implementations of attention by name: how to call each, and what each cannot do."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from mmjax.kernels.attention import cudnn, reference, splash, xla, xla_chunked
from mmjax.kernels.attention.mask import IntervalMask
from mmjax.typing import Array


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
    unsupported: Callable[[Any, Any, IntervalMask | None, float | None], str | None] = lambda *_: None
    absent: Callable[[], str | None] = lambda: None
    faster_in_any_order: bool = False
    any_padding: bool = False
    per_device: bool = False


def _on_hopper(*arrays: Any, **settings: Any) -> Array:
    from mmjax.kernels.attention.mosaic_gpu import call as kernels  # its imports take a while

    return kernels.attention(*arrays, **settings)


def _no_hopper() -> str | None:
    if jax.default_backend() == "gpu" and getattr(jax.devices()[0], "compute_capability", "") == "9.0":
        return None
    return f"it is made for GPUs of compute capability 9.0, and here is {jax.devices()[0].device_kind}"


def _unsupported_on_hopper(q: Any, k: Any, mask: IntervalMask | None, softcap: float | None) -> str | None:
    from mmjax.kernels.attention.mosaic_gpu import call as kernels

    return _no_hopper() or kernels.unsupported(q, k, k, mask, softcap=softcap)


IMPLEMENTATIONS = {
    "reference": Implementation(reference.attention, any_padding=True),
    "xla": Implementation(xla.attention, any_padding=True),
    "xla_chunked": Implementation(xla_chunked.attention, any_padding=True, per_device=True),
    "splash": Implementation(splash.attention, splash.unsupported, splash.absent, per_device=True),
    "cudnn": Implementation(cudnn.attention, cudnn.unsupported, cudnn.absent),
    "mosaic_gpu": Implementation(_on_hopper, _unsupported_on_hopper, _no_hopper, faster_in_any_order=True, per_device=True),
}
