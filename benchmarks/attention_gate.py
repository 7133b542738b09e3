"""Correctness first: outputs and gradients against the float32 reference, piece by piece, so that no piece's scores fill the memory."""

import functools
import json
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable

import attention_jax
import jax
import jax.numpy as jnp
import numpy as np
from attention_cases import Case, gate_cases

from mmjax.kernels.attention import IntervalMask, attention

BOUNDS = {"out": 4e-3, "dq": 1e-2, "dk": 1e-2, "dv": 1e-2}
"""Largest norm of the difference relative to the norm of the reference, for bfloat16."""

ENVIRONMENT = os.environ | {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "JAX_TRACEBACK_FILTERING": "off",
}
PATIENCE = 180.0
"""Seconds for one shape, compilation included; a kernel that waits for itself never ends."""


def errors(
    case: Case, piece: dict[str, np.ndarray], row: int, padding: bool = False
) -> dict[str, float]:
    """Relative errors of what a piece (`Prepared.piece`) holds of out, dq, dk and dv.

    Args:
        padding: the output is also compared in rows that see nothing. It is zero in mmjax, and others may have it otherwise.
    """
    mask = attention_jax.interval_mask(case)
    mask = None if mask is None else jax.tree.map(lambda bound: bound[row : row + 1], mask)
    reference = _reference(*(piece[name] for name in ("q", "k", "v", "dout")), mask)
    wanted = dict(zip(("out", "dq", "dk", "dv"), map(np.asarray, reference), strict=True))
    if not padding and case.form == "segments" and "out" in piece:
        seen = case.sees_something()
        piece = piece | {
            "out": np.where(seen[row % len(seen)][None, :, None, None], piece["out"], 0)
        }
    return {
        name: float(np.linalg.norm(piece[name] - x) / max(np.linalg.norm(x), 1e-30))
        for name, x in wanted.items()
        if name in piece
    }


@jax.jit
def _reference(
    q: jax.Array, k: jax.Array, v: jax.Array, dout: jax.Array, mask: IntervalMask | None
) -> tuple[jax.Array, ...]:
    out, back = jax.vjp(
        functools.partial(attention, mask=mask, implementation="reference"), q, k, v
    )
    return out, *back(dout)


def wrong(found: dict[str, float], bounds: dict[str, float] = BOUNDS) -> str | None:
    """What is out of bounds, in words; None if nothing is. NaN is."""
    bad = [
        f"{name} is off by {error:.1e} (at most {bounds[name]:.0e})"
        for name, error in found.items()
        if not error <= bounds[name]
    ]
    return ", ".join(bad) or None


def answer(name: str) -> None:
    """The process behind `passes`: one line of JSON for each shape, {"case": ..., "errors": ...}."""
    for case in gate_cases():
        prepared = attention_jax.Prepared(
            name, case, attention_jax.inputs(case, 1, jnp.bfloat16, padding=True), 1
        )
        directions = (
            ("forward", "gradient") if name in attention_jax.WHOLE else ("forward", "backward")
        )
        for direction in directions:
            prepared.measured(direction).run(1)
        worst: dict[str, float] = {}
        for row in range(case.batch):
            for kv_head in range(case.kv_heads):
                for part, error in errors(
                    case, prepared.piece(row, kv_head), row, padding=True
                ).items():
                    worst[part] = error if np.isnan(error) else max(worst.get(part, 0.0), error)
        print(json.dumps({"case": case.name, "errors": worst}), flush=True)


def passes(name: str, say: Callable[[str], None] = print, patience: float = PATIENCE) -> dict:
    """Tries an implementation at the small shapes, in a process of its own: one that hangs or writes where it must not ends that only.

    Returns:
        {"passed": bool, "reason": why not, "errors": {shape: {array: relative error}}}.
    """
    found: dict[str, dict[str, float]] = {}
    reason = None
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(
            command(name), stdout=subprocess.PIPE, stderr=complaints, text=True, env=ENVIRONMENT
        )
        lines = _lines(process)
        for case in gate_cases():
            try:
                line = lines.get(timeout=patience)
            except queue.Empty:
                reason = f"{case.name} ({case.title}): no result within {patience:.0f} s"
                break
            if not line:
                complaints.seek(0)
                last = [text.strip() for text in complaints if text.strip()][-1:]
                reason = f"{case.name} ({case.title}): its process ended with {process.wait()}: {(last or [''])[0][:300]}"
                break
            found[case.name] = json.loads(line)["errors"]
            if bad := wrong(found[case.name]):
                reason = f"{case.name} ({case.title}): {bad}"
                break
        process.kill()
        process.wait()
    say(f"gate, {name}: " + (f"FAILED. {reason}" if reason else f"passed at {len(found)} shapes"))
    return {"passed": reason is None, "reason": reason, "errors": found}


def command(name: str) -> list[str]:
    return [sys.executable, str(pathlib.Path(__file__).with_name("attention.py")), "--gate", name]


def _lines(process: subprocess.Popen) -> queue.Queue[str]:
    """Lines of its output as they come; an empty one when there are no more."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    return lines
