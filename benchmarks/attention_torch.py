"""Implementations of attention that PyTorch runs: scaled_dot_product_attention, pinned to a backend, and FlexAttention.

Imports nothing of mmjax or jax, so that an interpreter of its own can serve it too (`attention_torch_worker.py`). Arrays lie in memory as
in jax, [B, T, N, H], and are handed over as views [B, N, T, H], as a model does whose projections make them.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch._functorch.config
import torch.nn.functional as F
from attention_cases import Case
from attention_timing import Measured, Skipped
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

BACKENDS = {"torch_cudnn": SDPBackend.CUDNN_ATTENTION, "torch_flash": SDPBackend.FLASH_ATTENTION}
NAMES = (*BACKENDS, "torch_flex")
WARM_UPS = 3  # before a graph is captured: libraries are loaded and plans are made


def prepare(memory_share: float) -> None:
    """Once for the process: the share of the GPU's memory, and backward passes that may run more than once."""
    # Compiled backward passes free their arguments otherwise.
    torch._functorch.config.donated_buffer = False
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(memory_share)


def make(
    name: str, case: Case, device: str, dtype: torch.dtype
) -> tuple[Callable[..., torch.Tensor], str]:
    """(function of q, k, v, a remark). Raises Skipped where it has no form for the mask."""
    grouped = case.heads != case.kv_heads
    if name == "torch_flex":
        mask = None if case.form == "full" else block_mask(case, device)
        attend = flex_attention if device == "cpu" else torch.compile(flex_attention, dynamic=False)
        remark = "not compiled" if device == "cpu" else "" if mask is None else "block mask"
        return lambda q, k, v: attend(q, k, v, block_mask=mask, enable_gqa=grouped), remark
    settings: dict[str, Any] = {"is_causal": case.form == "causal"}
    if case.form == "segments":
        if name == "torch_flash":
            raise Skipped("it takes no mask but the causal one")
        dense = torch.from_numpy(case.dense()[:, None]).to(device)
        # A bias on the GPU, as cuDNN wants it; a mask of booleans would be turned into one in every call.
        settings["attn_mask"] = (
            dense if device == "cpu" else torch.where(dense, 0, torch.finfo(dtype).min).to(dtype)
        )
    if grouped and not _takes_groups(name, device, dtype):
        group, remark = case.heads // case.kv_heads, "keys and values repeated in every call"
        repeat = lambda x: x.repeat_interleave(group, dim=1)  # noqa: E731
        return lambda q, k, v: _pinned(name, q, repeat(k), repeat(v), **settings), remark
    return lambda q, k, v: _pinned(
        name, q, k, v, enable_gqa=grouped, **settings
    ), "dense mask" if case.form == "segments" else ""


def _pinned(name: str, *arrays: torch.Tensor, **settings: Any) -> torch.Tensor:
    if name not in BACKENDS:
        return F.scaled_dot_product_attention(*arrays, **settings)
    with sdpa_kernel(BACKENDS[name]):
        return F.scaled_dot_product_attention(*arrays, **settings)


def _takes_groups(name: str, device: str, dtype: torch.dtype) -> bool:
    """Whether a backend of this release reads fewer key heads than query heads."""
    q, k = (torch.randn(1, heads, 128, 64, device=device, dtype=dtype) for heads in (4, 1))
    try:
        _pinned(name, q, k, k, enable_gqa=True)
    except RuntimeError:
        return False
    return True


def block_mask(case: Case, device: str) -> Any:
    """The mask in the form of FlexAttention, from the same arrays as all others."""

    def array(values: np.ndarray | None) -> torch.Tensor:
        return (
            torch.zeros(shape, dtype=torch.int32, device=device)
            if values is None
            else torch.tensor(values, device=device)
        )

    shape = (1, case.rows) if case.segments is None else case.segments.shape
    segments, prefixes, blocks = (
        array(values) for values in (case.segments, case.prefixes, case.blocks)
    )
    alike = len(segments) == 1

    def seen(b: Any, h: Any, row: Any, key: Any) -> Any:
        if case.form == "causal":
            return row >= key
        at = 0 if alike else b
        own, other = segments[at, row], segments[at, key]
        together = (row >= key) | ((blocks[at, row] == blocks[at, key]) & (blocks[at, row] != 0))
        return ((own == other) & (own != 0) & together) | (
            (prefixes[at, row] == other) & (prefixes[at, row] != 0)
        )

    return create_block_mask(
        seen, None if alike else case.batch, None, case.rows, case.keys, device=device
    )


def inputs(
    case: Case, sets: int, device: str, dtype: torch.dtype, seed: int = 0
) -> list[tuple[torch.Tensor, ...]]:
    """`sets` times q, k, v and dout, standard normal, [B, N, T, H] seen, [B, T, N, H] in memory; dout as in `attention_jax.inputs`."""
    torch.manual_seed(seed)
    queries = case.batch, case.rows, case.heads, case.head_dim
    keys = case.batch, case.keys, case.kv_heads, case.head_dim
    shapes = queries, keys, keys, queries
    drawn = [
        tuple(torch.randn(shape, device=device, dtype=dtype).transpose(1, 2) for shape in shapes)
        for _ in range(sets)
    ]
    if case.form == "segments":
        nothing = torch.from_numpy(~case.sees_something()).to(device)[:, None, :, None]
        for *_, dout in drawn:
            dout.masked_fill_(nothing, 0)
    return drawn


class Prepared:
    """An implementation at a shape: the counterpart of `attention_jax.Prepared`.

    On a GPU all calls of the sets are captured in one CUDA graph and replayed between two events, so that no time is lost between their
    launches. Where that fails the calls are launched one by one, and the remark says so.
    """

    def __init__(self, name: str, case: Case, sets: list[tuple[torch.Tensor, ...]], device: str):
        self.case, self.device = case, device
        self.attend, self.remark = make(name, case, device, sets[0][0].dtype)
        self.sets = [tuple(x.requires_grad_() for x in arrays[:3]) + arrays[3:] for arrays in sets]
        # Graphs need passes that belong together on one stream.
        self.stream = torch.cuda.Stream() if device == "cuda" else None
        self.steps: dict[str, Callable[[], list]] = {}

    def measured(self, direction: str) -> Measured:
        step = self.steps[direction] = self._step(direction)
        if self.stream is None:
            return Measured(lambda number: _on_host(step, number), len(self.sets))
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.synchronize()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):
                kept = step()
        except RuntimeError:
            torch.cuda.synchronize()
            self.remark = ", ".join(
                filter(None, (self.remark, f"{direction} launched call by call"))
            )
            return Measured(lambda number: _on_device(step, self.stream, number), len(self.sets))
        replay = lambda kept=kept: graph.replay()  # noqa: E731 - what the graph writes to lives as long as it
        return Measured(lambda number: _on_device(replay, self.stream, number), len(self.sets))

    def _on_stream(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def _step(self, direction: str) -> Callable[[], list]:
        """One call for every set."""

        def gradients(
            out: torch.Tensor, arrays: tuple[torch.Tensor, ...], keep: bool
        ) -> tuple[torch.Tensor, ...]:
            return torch.autograd.grad(out, arrays[:3], arrays[3], retain_graph=keep)

        def forward() -> list[torch.Tensor]:
            # On a GPU as training runs it: FlexAttention is then compiled once. On a CPU it takes no arrays that want gradients.
            sets = [
                [x.detach() for x in arrays[:3]] if self.device == "cpu" else arrays[:3]
                for arrays in self.sets
            ]
            return [self.attend(*arrays).detach() for arrays in sets]

        if direction == "forward":
            return forward
        if direction == "gradient":
            return lambda: [
                gradients(self.attend(*arrays[:3]), arrays, False) for arrays in self.sets
            ]
        with self._on_stream():
            outs = [self.attend(*arrays[:3]) for arrays in self.sets]
        return lambda: [
            gradients(out, arrays, True) for out, arrays in zip(outs, self.sets, strict=True)
        ]

    def piece(self, row: int, kv_head: int) -> dict[str, np.ndarray]:
        """As `attention_jax.Prepared.piece`, in jax's order of axes."""
        group = self.case.heads // self.case.kv_heads
        many, one = slice(kv_head * group, (kv_head + 1) * group), slice(kv_head, kv_head + 1)
        cut = dict(zip(("q", "k", "v", "dout"), self.sets[0], strict=True))
        for direction, step in self.steps.items():
            with self._on_stream():
                found = step()[0]
            cut |= (
                {"out": found}
                if direction == "forward"
                else dict(zip(("dq", "dk", "dv"), found, strict=True))
            )
        if self.stream is not None:
            torch.cuda.synchronize()
        heads = {name: one if name in ("k", "v", "dk", "dv") else many for name in cut}
        return {
            name: x.detach()[row : row + 1, heads[name]].transpose(1, 2).float().cpu().numpy()
            for name, x in cut.items()
        }


def _on_host(step: Callable[[], object], number: int) -> float:
    begun = time.perf_counter()
    for _ in range(number):
        step()
    return time.perf_counter() - begun


def _on_device(step: Callable[[], object], stream: Any, number: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.stream(stream):
        begin.record()
        for _ in range(number):
            step()
        end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
