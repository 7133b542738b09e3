"""The figures of the step-time benchmark as Markdown."""

import statistics
from collections.abc import Sequence
from typing import Any

from step_time_shapes import said
from step_time_workers import LABELS, OURS

from mmjax.training.flops import MFU_FORMULA, mfu

Result = dict[str, Any]
COLUMNS = (
    "shape", "worker", "ms per step: median (min-max)", "samples/s", "tokens/s", "MFU", "peak memory", "first step",
    "mmjax / worker: median of rounds (min-max)", "first loss, gradient norm", "remarks",
)  # fmt: skip


def page(record: Result) -> str:
    """The results as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        f"# Step time against PyTorch, {record['device']}",
        "",
        f"{record['date']}, {record['device']}; {versions}.",
        "",
    ]
    lines += [f"    {record['command']}", "", *_notes(record), "", *table(record), ""]
    for result in record["shapes"]:
        lines += _shape_notes(result)
    if record["skipped"]:
        lines += [
            "",
            "Skipped: "
            + "; ".join(f"{name} ({reason})" for name, reason in record["skipped"].items())
            + ".",
        ]
    for failure in failures(record):
        lines += ["", f"FAILED: {failure}"]
    return "\n".join(lines) + "\n"


def _notes(record: Result) -> list[str]:
    peak = record.get("peak_flops")
    stated = "not known for this device" if peak is None else f"{peak / 1e12:.3g} TFLOP/s"
    how = (
        "as measured by a float32 matrix product in mmjax's process"
        if record["on_cpu"]
        else "of the data sheet, dense bfloat16"
    )
    memory = (
        "the process's peak resident memory, compilers included"
        if record["on_cpu"]
        else "of the allocator of each framework"
    )
    return [
        f"{MFU_FORMULA}. The peak is {stated}, {how}; the FLOPs are the same for both sides. Peak memory is {memory}. The first step "
        "includes its compilation. Tokens are those that are no padding. A ratio below 1: mmjax is faster."
    ]


def table(record: Result) -> list[str]:
    """One line for each shape and worker."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for result in record["shapes"]:
        lines += [
            "| " + " | ".join(_row(record, result, name)) + " |" for name in result["workers"]
        ]
    return lines


def _row(record: Result, result: Result, name: str) -> list[str]:
    worker = result["workers"][name]
    remarks = [
        worker.get("remark", ""),
        f"failed: {worker['error'].replace('|', '/')}" if "error" in worker else "",
    ]
    begun = ["-", "-"]
    if "first_steps" in worker:
        begun = [
            f"{worker['first_steps'][0]:.1f} s",
            f"{worker['losses'][0]:.6g}, {worker['norms'][0]:.6g}",
        ]
    head = [result["name"], LABELS[name]]
    if not worker.get("seconds"):
        return [*head, *["-"] * 5, begun[0], "-", begun[1], ", ".join(filter(None, remarks))]
    middle = statistics.median(worker["seconds"])
    used = (
        "-"
        if record.get("peak_flops") is None
        else f"{mfu(result['flops'], middle, 1, record['peak_flops']):.1%}"
    )
    return [
        *head,
        spread([1e3 * seconds for seconds in worker["seconds"]], ".4g"),
        f"{result['samples'] / middle:.4g}",
        f"{result['tokens'] / middle:.4g}",
        used,
        f"{worker['memory'] / 2**30:.2f} GiB",
        begun[0],
        spread(found, ".2f") if (found := ratios(result, name)) else "-",
        begun[1],
        ", ".join(filter(None, remarks)),
    ]


def ratios(result: Result, name: str) -> list[float]:
    """Seconds of mmjax over those of a worker, round by round; of mmjax itself nothing. `beside`: mmjax's turns in that worker's rounds."""
    worker = result["workers"][name]
    if name == OURS:
        return []
    ours = worker.get("beside") or result["workers"][OURS].get("seconds", [])
    # One may have failed midway.
    return [mine / theirs for mine, theirs in zip(ours, worker.get("seconds", []), strict=False)]


def spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def _shape_notes(result: Result) -> list[str]:
    """What a shape is, what is smaller than its name says, and what is not compared."""
    lines = ["", f"`{result['name']}`: {result['title']}."]
    if result["scaled"]:
        lines.append(f"Scaled down for this machine: {said(result['scaled'])}.")
    if not result["compared"]:
        lines.append("Both sides draw their own parameters, so their losses are not compared.")
    if result["padding"]["mmjax"] != result["padding"]["torch"]:
        ours, theirs = (f"{result['padding'][side]:.1%}" for side in ("mmjax", "torch"))
        lines.append(
            f"mmjax packs the samples into rows, {ours} padding; PyTorch pads each of the same samples, {theirs} padding."
        )
    backends = next(
        (worker["backends"] for worker in result["workers"].values() if worker.get("backends")), {}
    )
    if backends:
        lines += [
            "Attention in PyTorch, tried before:",
            "",
            *(f"- {call}: {choice}" for call, choice in backends.items()),
        ]
    return lines


def failures(record: Result) -> list[str]:
    """Shapes that failed, and why."""
    return [
        f"{result['name']}: {result['failed']}" for result in record["shapes"] if "failed" in result
    ]
