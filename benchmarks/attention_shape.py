"""One shape: implementations are prepared and checked, then timed in interleaved rounds."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import attention_gate
import numpy as np
from attention_cases import Case
from attention_timing import Clock, Measured, attempt, interleaved


class Prepared(Protocol):
    """An implementation at a shape: `attention_jax.Prepared`, `attention_torch.Prepared` or a worker process."""

    remark: str

    def measured(self, direction: str) -> Measured: ...

    def piece(self, row: int, kv_head: int) -> dict[str, np.ndarray]: ...


def measure(
    case: Case,
    makers: dict[str, Callable[[], Prepared]],
    directions: Iterable[str],
    clock: Clock,
    *,
    rounds: int,
    target: float,
    bounds: dict[str, float],
    beat: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, dict]]:
    """{direction: {name: {"seconds": per call, round by round, or "error": why there are none, "remark": ...}}}.

    An implementation is checked at this very shape, at the last row of the batch and the last group of heads: what is wrong is not timed.
    """
    results: dict[str, dict[str, dict]] = {direction: {} for direction in directions}
    work: dict[str, dict[str, Measured]] = {direction: {} for direction in results}
    for name, maker in makers.items():
        beat(f"{case.name}, {name}: preparing")
        found: dict[str, Any] = {}
        ready = not clock.is_up() and attempt(
            found, lambda found=found, maker=maker: found.update(prepared=maker())
        )
        for direction in results:
            results[direction][name] = (
                {}
                if ready
                else {"error": found.get("error", "skipped: the time of this shape was up")}
            )
            if ready:
                attempt(
                    results[direction][name],
                    lambda d=direction, n=name, p=found["prepared"]: work[d].update(
                        {n: p.measured(d)}
                    ),
                )
        if ready and any(name in work[direction] for direction in results):
            _check(case, name, found["prepared"], results, work, bounds)
    for direction, measured in work.items():
        timed = interleaved(
            measured,
            rounds,
            target,
            clock,
            lambda name, d=direction: beat(f"{case.name}, {name}, {d}"),
        )
        for name, result in timed.items():
            results[direction][name] |= result
    return results


def _check(
    case: Case, name: str, prepared: Prepared, results: dict, work: dict, bounds: dict[str, float]
) -> None:
    """Removes an implementation from all directions if it cannot compute, or what it computes is out of bounds."""
    found: dict[str, Any] = {}
    row = case.batch - 1

    def compare() -> None:
        found["errors"] = attention_gate.errors(case, prepared.piece(row, case.kv_heads - 1), row)
        if bad := attention_gate.wrong(found["errors"], bounds):
            raise ArithmeticError(bad)

    attempt(found, compare)
    for direction in results:
        if "error" in found and name in work[direction]:
            del work[direction][name]
            results[direction][name]["error"] = found["error"]
        elif name in work[direction]:
            results[direction][name] |= {"errors": found["errors"], "remark": prepared.remark}
