"""The share of a training step that waiting for input takes, from what a real run writes down.

A batch that comes while a step is still under way was not waited for (`training/loop.py`).
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping

ROOT = pathlib.Path(__file__).resolve().parents[1]
WINDOWS = 10  # log lines a stage


def measure(config: str, workers: int, steps: int) -> dict[str, dict[str, float]]:
    """Runs a recipe's stages for so many steps each; `shares` by stage.

    Raises:
        RuntimeError: the run failed; says how.
    """
    from mmjax.config.load import load

    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "mmjax.main",
            f"--config={config}",
            f"--workdir={folder}/run",
            "--config.evaluation.limit=1",
        ]
        command += [
            f"--config.logging.every={max(steps // WINDOWS, 1)}",
            "--config.evaluation.untrained=false",
        ]
        recipe = load(config)
        for name in recipe.stages:
            settings = {"steps": steps, "data.workers": workers}
            if "captions" not in recipe.evaluation.tasks:  # of which some must be held out
                settings["data.holdout"] = 0  # nothing beside training is looked at
            command += [
                f"--config.stages.{name}.{setting}={value}" for setting, value in settings.items()
            ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise RuntimeError(
                f"the run ended with code {done.returncode}: {done.stderr.strip()[-500:]}"
            )
        lines = (pathlib.Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        summary = json.loads((pathlib.Path(folder) / "run" / "summary.json").read_text())
    return shares(
        [json.loads(line) for line in lines],
        {stage["name"]: stage["seconds_by_cause"] for stage in summary["stages"]},
    )


def shares(
    metrics: Iterable[Mapping], causes: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """What a run's log lines and its seconds by cause say of its input.

    Args:
        metrics: the lines of metrics.jsonl.
        causes: `seconds_by_cause` of every stage.

    Returns:
        By stage: "input" and "step", seconds per step of all log windows, which begin after the first step; "share", of input in their sum;
        "most", the same in the window where it was largest; "first", seconds until the first batch was there, planning not counted.
    """
    found = {}
    for stage, seconds in causes.items():
        windows, before = [], 1  # speed is told from the second step on
        for line in metrics:
            if line["stage"] != stage or not line.get("steps_per_second"):
                continue
            steps, before = line["step"] - before, line["step"]
            share = line["time_share/input"] / (line["time_share/input"] + line["time_share/step"])
            windows.append((steps, steps / line["steps_per_second"], share))
        if not windows:
            continue
        steps, training = sum(window[0] for window in windows), sum(window[1] for window in windows)
        waited = sum(window[1] * window[2] for window in windows)
        found[stage] = {
            "input": waited / steps,
            "step": (training - waited) / steps,
            "share": waited / training,
            "most": max(window[2] for window in windows),
            "first": seconds["input"] - waited,
        }
    return found
