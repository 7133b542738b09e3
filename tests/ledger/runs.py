"""Workdirs of finished runs, made by hand."""

import json
from pathlib import Path
from typing import Any

HARDWARE = {"platform": "gpu", "device": "H100", "devices": 16, "cpus": 64}


def stage(name: str, hours: float, flops: float, devices: int = 16) -> dict[str, Any]:
    seconds = 3600 * hours
    numbers = {
        "seconds": seconds,
        "devices": devices,
        "device_seconds": seconds * devices,
        "flops": flops,
    }
    return {"name": name, "steps": 10, "samples": 1280, "tokens": 2_000_000, **numbers}


def grafted(**hardware: Any) -> dict[str, Any]:
    """The hours that arXiv:2505.22664 prints; the first two stages on half of the devices."""
    stages = [
        stage("translators", 9.36, 4e22, 8),
        stage("encoder", 4.25, 2e22, 8),
        stage("finetune", 5.56, 2e22),
    ]
    return {"stages": stages, "hardware": HARDWARE | hardware}


def baseline(**hardware: Any) -> dict[str, Any]:
    return {
        "stages": [stage("pretrain", 7.01, 3e22), stage("finetune", 27.78, 1e23)],
        "hardware": HARDWARE | hardware,
    }


def write(folder: Path, summary: dict[str, Any], *more: str) -> Path:
    """A workdir whose config has the stages of the summary, and `more`."""
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    names = [*(entry["name"] for entry in summary["stages"]), *more]
    (folder / "config.json").write_text(json.dumps({"stages": {name: {} for name in names}}))
    return folder
