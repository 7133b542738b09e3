"""The figures of the step-time benchmark as one SVG image: step time beside mmjax's, MFU and memory, by shape and worker."""

import statistics
from collections.abc import Callable
from typing import Any

from bar_chart import Panel, image
from step_time_table import ratios
from step_time_workers import LABELS, OURS

from mmjax.report.html import Html
from mmjax.training.flops import mfu

COLOURS = {
    "mmjax": "#b3261e",
    "torch eager": "#5aa0e0",
    "torch.compile": "#1f5fa8",
    "torch.compile max-autotune": "#0f3057",
}


def panels(record: dict[str, Any]) -> list[Panel]:
    """Step time of each worker in steps of mmjax, MFU where a peak is known, peak memory; of the shapes that were timed."""
    timed = [
        result
        for result in record["shapes"]
        if any(worker.get("seconds") for worker in result["workers"].values())
    ]

    def groups(
        value: Callable[[dict, str, dict], float],
    ) -> tuple[tuple[str, dict[str, float]], ...]:
        return tuple(
            (
                result["name"],
                {
                    LABELS[name]: value(result, name, worker)
                    for name, worker in result["workers"].items()
                    if worker.get("seconds")
                },
            )
            for result in timed
        )

    def relative(result: dict, name: str, worker: dict) -> float:
        return 1.0 if name == OURS else 1 / statistics.median(ratios(result, name))

    found = [
        Panel("step time over that of mmjax (above 1: mmjax is faster)", "times", groups(relative))
    ]
    if peak := record.get("peak_flops"):
        share = groups(
            lambda result, _, worker: (
                100 * mfu(result["flops"], statistics.median(worker["seconds"]), 1, peak)
            )
        )
        found.append(Panel("model FLOPs utilisation", "%", share))
    found.append(
        Panel("peak memory", "GiB", groups(lambda result, _, worker: worker["memory"] / 2**30))
    )
    return found


def draw(record: dict[str, Any]) -> Html | None:
    """The image; None where nothing was timed."""
    shown = panels(record)
    if not shown[0].groups:
        return None
    title = f"Training steps beside PyTorch, {record['device']}, {record['date']}"
    return image(
        shown,
        title,
        COLOURS,
        label="step time, utilisation and memory of mmjax and PyTorch by shape",
    )
