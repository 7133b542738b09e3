"""Attention: every call of the model goes through `attend`; on a GPU each kind of call is pinned to the backend that was fastest for it."""

import dataclasses
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

NAME = "pinned_sdpa"  # under which transformers knows `attend`
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
WARM_UPS, TIMED = 2, 5

_recorded: "list[tuple[nn.Module, Call]] | None" = None  # while a forward pass is watched


@dataclasses.dataclass(frozen=True)
class Call:
    """What backends care about.

    Attributes:
        form: "causal", "full" or "masked".
        shape: batch, query heads, queries, key heads, keys, head dimension.
    """

    form: str
    shape: tuple[int, ...]
    mask: Tensor | None = dataclasses.field(compare=False)

    def __str__(self) -> str:
        batch, heads, queries, key_heads, keys, dimension = self.shape
        return (
            f"{self.form}, {batch} x {heads} ({key_heads}) heads of {dimension}, {queries} x {keys}"
        )


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it: [B, N, T, H] to [B, T, N, H]. A mask of booleans, or none: then causal if the module is.

    `module.pinned` says what `choose` found: a backend, and whether keys and values are repeated for it.
    """
    causal = attention_mask is None and module.is_causal
    if _recorded is not None:
        form = "masked" if attention_mask is not None else "causal" if causal else "full"
        shape = (*query.shape[:3], *key.shape[1:3], query.shape[-1])
        _recorded.append((module, Call(form, shape, attention_mask)))
    out = _compute(
        query,
        key,
        value,
        attention_mask,
        causal,
        scaling,
        *getattr(module, "pinned", (None, False)),
    )
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, attend)


def _compute(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    backend: str | None,
    repeat: bool,
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    if grouped and repeat:
        group = query.shape[1] // key.shape[1]
        key, value, grouped = (
            key.repeat_interleave(group, dim=1),
            value.repeat_interleave(group, dim=1),
            False,
        )
    settings = {"attn_mask": mask, "is_causal": causal, "scale": scale, "enable_gqa": grouped}
    if backend is None:
        return F.scaled_dot_product_attention(query, key, value, **settings)
    with sdpa_kernel(BACKENDS[backend]):
        return F.scaled_dot_product_attention(query, key, value, **settings)


class watched:
    """Collects (module, Call) of every call inside."""

    def __enter__(self) -> "list[tuple[nn.Module, Call]]":
        global _recorded
        _recorded = []
        return _recorded

    def __exit__(self, *_: object) -> None:
        global _recorded
        _recorded = None


def choose(calls: "list[tuple[nn.Module, Call]]", dtype: torch.dtype) -> dict[str, str]:
    """Times every backend at every kind of call, forward and backward, and pins the modules to the fastest. On a GPU.

    Returns:
        {call: which backend, and the milliseconds of all that can compute it}.
    """
    found: dict[str, str] = {}
    for call in dict.fromkeys(call for _, call in calls):
        grouped = call.shape[1] != call.shape[3]
        candidates = [
            (backend, repeat)
            for backend in BACKENDS
            for repeat in ((False, True) if grouped else (False,))
        ]
        times = {candidate: _seconds(call, dtype, *candidate) for candidate in candidates}
        usable = {candidate: seconds for candidate, seconds in times.items() if seconds is not None}
        pinned = min(usable, key=usable.__getitem__) if usable else (None, False)
        for module, seen in calls:
            if seen == call:
                module.pinned = pinned
        listed = ", ".join(
            f"{_title(*candidate)} {1e3 * seconds:.3f} ms" for candidate, seconds in usable.items()
        )
        found[str(call)] = (
            f"{_title(*pinned)} ({listed})"
            if usable
            else "PyTorch's own choice: no backend of these can compute it"
        )
    return found


def _title(backend: str | None, repeat: bool) -> str:
    return f"{backend}{', keys repeated' if repeat else ''}"


def _seconds(call: Call, dtype: torch.dtype, backend: str, repeat: bool) -> float | None:
    """Of one forward and backward pass on random numbers; None where the backend cannot compute this call."""
    batch, heads, queries, key_heads, keys, dimension = call.shape
    shapes = (
        (batch, queries, heads, dimension),
        (batch, keys, key_heads, dimension),
        (batch, keys, key_heads, dimension),
    )
    arrays = [
        torch.randn(shape, device="cuda", dtype=dtype).transpose(1, 2).requires_grad_()
        for shape in shapes
    ]
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    try:
        with warnings.catch_warnings():  # of backends that say why they cannot
            warnings.simplefilter("ignore")
            for number in range(WARM_UPS + TIMED):
                if number == WARM_UPS:
                    begin.record()
                out = _compute(*arrays, call.mask, call.form == "causal", None, backend, repeat)
                torch.autograd.grad(out, arrays, torch.ones_like(out))
        end.record()
        end.synchronize()
    except RuntimeError:
        return None
    return begin.elapsed_time(end) / 1e3 / TIMED
