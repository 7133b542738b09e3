"""Implementations of attention that jax runs: those of mmjax, cuDNN and XLA through jax, tokamax."""

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from attention_cases import Case
from attention_timing import Measured, Skipped

from mmjax.kernels.attention import IntervalMask, attention

OURS = {
    "mosaic_gpu": {"implementation": "mosaic_gpu"},
    "mosaic_gpu_fused": {"implementation": "mosaic_gpu", "deterministic": False},
    "xla_chunked": {"implementation": "xla_chunked"},
    "default": {},
}
"""Names of what mmjax is measured with, and what they hand to `kernels.attention`; "default" lets it pick."""

# Made of plain operations of XLA: cut into two programs, the backward pass would be handed several arrays of all scores, which one program
# need not keep. So only both passes in one are timed.
WHOLE = ("xla", "jax_nn")

type Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], jax.Array]


def interval_mask(case: Case) -> IntervalMask | None:
    if case.form == "full":
        return None
    if case.form == "causal":
        return IntervalMask.causal(case.batch, case.rows)

    def whole(values: np.ndarray | None) -> jax.Array | None:
        return (
            None
            if values is None
            else jnp.broadcast_to(jnp.asarray(values), (case.batch, case.rows))
        )

    return IntervalMask.from_segments(
        whole(case.segments), whole(case.prefixes), whole(case.blocks)
    )


def make(name: str, case: Case) -> tuple[Attend, Any, str]:
    """(function of q, k, v and the mask, the mask in its form, a remark). Raises ValueError if there is no such implementation."""
    if name in OURS or name == "xla":
        settings = OURS.get(name, {"implementation": "xla"})
        return lambda q, k, v, mask: attention(q, k, v, mask, **settings), interval_mask(case), ""
    causal = case.form == "causal"
    dense = jnp.asarray(case.dense()[:, None]) if case.form == "segments" else None
    if name == "cudnn":
        # As a bias, once: a mask of booleans would be turned into one in every call.
        bias = (
            None
            if dense is None
            else jnp.where(dense, 0, jnp.finfo(jnp.bfloat16).min).astype(jnp.bfloat16)
        )
        remark = "" if bias is None else "dense bias"

        def attend(q, k, v, bias):
            return jax.nn.dot_product_attention(
                q, k, v, bias, is_causal=causal, implementation="cudnn"
            )

        return attend, bias, remark
    if name == "jax_nn":

        def attend(q, k, v, mask):
            return jax.nn.dot_product_attention(
                q, k, v, mask=mask, is_causal=causal, implementation="xla"
            )

        return attend, dense, "" if dense is None else "dense mask"
    if name == "tokamax":
        import tokamax

        def attend(q, k, v, mask):
            return tokamax.dot_product_attention(
                q, k, v, mask=mask, is_causal=causal, implementation="mosaic"
            )

        return attend, dense, "" if dense is None else "dense mask"
    raise ValueError(f"there is no implementation {name!r} in jax")


def has_tokamax() -> bool:
    return importlib.util.find_spec("tokamax") is not None


def inputs(
    case: Case, sets: int, dtype: Any, seed: int = 0, padding: bool = False
) -> list[tuple[jax.Array, ...]]:
    """`sets` times q, k, v and dout, standard normal; dout is zero where a row sees nothing, as in training.

    Args:
        padding: dout is not zero there either.
    """
    queries = case.batch, case.rows, case.heads, case.head_dim
    keys = case.batch, case.keys, case.kv_heads, case.head_dim

    seen = (
        np.ones((1, 1, 1, 1), bool)
        if padding or case.form != "segments"
        else case.sees_something()[:, :, None, None]
    )

    @jax.jit
    def draw(key: jax.Array) -> tuple[jax.Array, ...]:
        shapes = queries, keys, keys, queries
        q, k, v, dout = (
            jax.random.normal(key, shape, dtype)
            for key, shape in zip(jax.random.split(key, 4), shapes, strict=True)
        )
        return q, k, v, jnp.where(seen, dout, 0)

    return [draw(jax.random.key(seed + number)) for number in range(sets)]


class Prepared:
    """An implementation at a shape. A direction is compiled when it is first asked for.

    Args:
        sets: as `inputs` makes them; taken in turn.
        calls: as many of them are computed by one dispatch, which divides their number.
    """

    def __init__(self, name: str, case: Case, sets: list[tuple[jax.Array, ...]], calls: int):
        assert len(sets) % calls == 0, (len(sets), calls)
        self.case, self.name, self.calls = case, name, calls
        attend, self.mask, self.remark = make(name, case)
        self.attend = jax.jit(attend)  # traced once, however many calls a program has
        self.sets = [sets[start : start + calls] for start in range(0, len(sets), calls)]
        self.programs: dict[str, tuple[Callable[..., Any], list[tuple]]] = {}

    def measured(self, direction: str) -> Measured:
        program, arguments = self._program(direction)

        def run(dispatches: int) -> float:
            begun = time.perf_counter()
            for number in range(dispatches):
                out = program(*arguments[number % len(arguments)])
            jax.block_until_ready(out)
            return time.perf_counter() - begun

        return Measured(run, self.calls)

    def piece(self, row: int, kv_head: int) -> dict[str, np.ndarray]:
        """One row of the batch and one group of heads of the first set, in float32: q, k, v, dout and, of the directions that were asked
        for, out and dq, dk, dv, as the timed programs compute them."""
        group = self.case.heads // self.case.kv_heads
        many, one = slice(kv_head * group, (kv_head + 1) * group), slice(kv_head, kv_head + 1)
        cut = dict(zip(("q", "k", "v", "dout"), self.sets[0][0], strict=True))
        for direction, (program, arguments) in self.programs.items():
            found = program(*arguments[0])[0]
            cut |= (
                {"out": found}
                if direction == "forward"
                else dict(zip(("dq", "dk", "dv"), found, strict=True))
            )
        heads = {name: one if name in ("k", "v", "dk", "dv") else many for name in cut}
        return {
            name: np.asarray(x[row : row + 1, :, heads[name]].astype(jnp.float32))
            for name, x in cut.items()
        }

    def _program(self, direction: str) -> tuple[Callable[..., Any], list[tuple]]:
        """What is timed, and its arguments, one tuple for each dispatch until they come round again."""
        if direction not in self.programs:
            self.programs[direction] = (
                self._backward() if direction == "backward" else self._whole(direction)
            )
        return self.programs[direction]

    def _whole(self, direction: str) -> tuple[Callable[..., Any], list[tuple]]:
        def forward(sets: list, mask: Any) -> list:
            return [self.attend(q, k, v, mask) for q, k, v, _ in sets]

        def gradient(sets: list, mask: Any) -> list:
            return [
                jax.vjp(lambda *x: self.attend(*x, mask), q, k, v)[1](dout)
                for q, k, v, dout in sets
            ]

        return jax.jit(forward if direction == "forward" else gradient), [
            (group, self.mask) for group in self.sets
        ]

    def _backward(self) -> tuple[Callable[..., Any], list[tuple]]:
        """The pass alone: the forward pass and what it keeps are in the arguments."""
        if self.name in WHOLE:
            raise Skipped(
                "XLA would hand over arrays of all scores between two programs; --directions gradient times both in one"
            )
        keep = jax.jit(
            lambda sets, mask: [
                jax.vjp(lambda *x: self.attend(*x, mask), q, k, v)[1] for q, k, v, _ in sets
            ]
        )
        backward = jax.jit(
            lambda kept, douts: [back(dout) for back, dout in zip(kept, douts, strict=True)]
        )
        return backward, [
            (keep(group, self.mask), [dout for *_, dout in group]) for group in self.sets
        ]
