"""Operations of a trace that jax.profiler has written, with the time that each took itself. Standard library only."""

import collections
import dataclasses
import gzip
import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

DEVICE = "/device:"  # begins the names of processes that stand for accelerators
STREAM, OPERATIONS = "Stream", "XLA Ops"  # begin the names of such a process's rows
_INSTRUCTION = re.compile(
    r'^\s*(?:ROOT )?%?([\w.-]+) = \(?(\w+\[[\d,]*\]).*op_name="([^"]*)"', re.MULTILINE
)
_UNTOLD = ("while", "body", "closed_call", "checkpoint", "rematted_computation")
_PARTS = 5  # of the path of an operation, the last ones


@dataclasses.dataclass
class Operation:
    """Events of one name.

    Attributes:
        microseconds: in which the device did this and nothing that stands within it. count: of events.
        example: the operation of the compiled program that one of the events belongs to, where the trace says.
    """

    name: str
    microseconds: float = 0.0
    count: int = 0
    example: str = ""


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The events of the trace in a folder that was given to jax.profiler.trace(..., create_perfetto_trace=True).

    Raises:
        ValueError: there is none.
    """
    paths = sorted(folder.rglob("perfetto_trace.json.gz"))
    if not paths:
        raise ValueError(
            f"{folder} has no perfetto_trace.json.gz: the profiler has written no trace"
        )
    with gzip.open(paths[-1], "rt", encoding="utf-8") as file:
        return json.load(file)["traceEvents"]


def operations(events: Iterable[Mapping[str, Any]]) -> list[Operation]:
    """What the device did, the longest first.

    With an accelerator, the kernels of its streams; where it shows no streams, the row of operations. Without one, the operations of
    compiled programs on the host's threads. Rows that repeat these by program, step or source line are skipped, and of an event that
    others stand in only the time beside them counts, so that nothing is counted twice.
    """
    events = list(events)
    rows = _chosen_rows(events)
    by_row = collections.defaultdict(list)
    for event in events:
        place = (event.get("pid"), event.get("tid"))
        if event.get("ph") == "X" and (
            place in rows if rows else "hlo_op" in event.get("args", {})
        ):
            by_row[place].append(event)
    found: dict[str, Operation] = {}
    for row in by_row.values():
        for event, alone in own_times(row):
            operation = found.setdefault(event["name"], Operation(event["name"]))
            operation.microseconds += alone
            operation.count += 1
            operation.example = operation.example or str(event.get("args", {}).get("hlo_op", ""))
    return sorted(found.values(), key=lambda operation: -operation.microseconds)


def _chosen_rows(events: list[Mapping[str, Any]]) -> set[tuple[Any, Any]]:
    """(process, row) of the accelerators' streams, or else of their operations; empty without accelerators."""
    named = [event for event in events if event.get("ph") == "M"]
    devices = {
        event["pid"]
        for event in named
        if event["name"] == "process_name" and event["args"]["name"].startswith(DEVICE)
    }
    rows = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in named
        if event["name"] == "thread_name" and event["pid"] in devices
    }
    for beginning in (STREAM, OPERATIONS):
        if chosen := {row for row, name in rows.items() if name.startswith(beginning)}:
            return chosen
    return set()


def own_times(row: Iterable[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], float]]:
    """The events of one row, each with its duration less that of the events directly within it, in microseconds."""
    ordered = sorted(row, key=lambda event: (event["ts"], -event.get("dur", 0.0)))
    alone = [float(event.get("dur", 0.0)) for event in ordered]
    open_ones: list[
        tuple[float, int]
    ] = []  # (end, number) of the events that the present one stands in
    for number, event in enumerate(ordered):
        begin, duration = float(event["ts"]), float(event.get("dur", 0.0))
        while open_ones and open_ones[-1][0] <= begin:
            open_ones.pop()
        if open_ones:
            alone[open_ones[-1][1]] -= duration
        open_ones.append((begin + duration, number))
    return [(event, max(time, 0.0)) for event, time in zip(ordered, alone, strict=True)]


def origins(program: str) -> dict[str, str]:
    """Of the operations of a compiled program, given as text: by name the shape of the result, and where in the model it was written."""
    found = {}
    for name, shape, path in _INSTRUCTION.findall(program):
        parts = [
            part for part in path.split("/") if part not in _UNTOLD and not part.startswith("jit(")
        ]
        found[name] = f"{shape} {'/'.join(parts[-_PARTS:])}"
    return found


def table(
    found: list[Operation], steps: int, most: int = 10, origin: Mapping[str, str] | None = None
) -> list[str]:
    """Markdown: the longest operations, per step; `origin` says what they are, by their names in the program (`origins`)."""
    whole = sum(operation.microseconds for operation in found)
    lines = [
        "| operation | ms a step | share | times a step | in the program |",
        "|---|---|---|---|---|",
    ]
    for operation in found[:most]:
        share = operation.microseconds / whole if whole else 0.0
        name = operation.name if len(operation.name) <= 80 else operation.name[:77] + "..."
        ms, count = operation.microseconds / 1e3 / steps, operation.count / steps
        written = " ".join(filter(None, (operation.example, (origin or {}).get(operation.example))))
        lines.append(f"| `{name}` | {ms:.3f} | {share:.1%} | {count:.1f} | `{written}` |")
    rest = sum(operation.microseconds for operation in found[most:])
    if whole:
        lines.append(
            f"| {len(found[most:])} others | {rest / 1e3 / steps:.3f} | {rest / whole:.1%} | | |"
        )
        lines.append(f"| all | {whole / 1e3 / steps:.3f} | 100% | | |")
    return lines
