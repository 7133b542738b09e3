"""What a finished run cost, from the files of its workdir: summary.json, and the names of the stages in config.json."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.errors import InputError
from mmjax.ledger.costs import Costs, StageCost


def read(workdir: Path) -> Costs:
    """What the run in a workdir cost.

    Raises:
        InputError: there is no run, it is not finished, or its files are damaged.
    """
    if not workdir.is_dir():
        raise InputError(f"There is no folder {workdir}.")
    if not (workdir / "config.json").is_file() and not (workdir / "summary.json").is_file():
        raise InputError(
            f"{workdir} is not the workdir of a run: it has neither config.json nor summary.json."
        )
    if not (workdir / "summary.json").is_file():
        raise InputError(
            f"No stage of the run in {workdir} is finished: it has no summary.json yet."
        )
    configured = (
        _object(workdir / "config.json").get("stages")
        if (workdir / "config.json").is_file()
        else None
    )
    return costs_of_summary(str(workdir), _object(workdir / "summary.json"), list(configured or ()))


def costs_of_summary(
    name: str, summary: Mapping[str, Any], configured: Sequence[str] = ()
) -> Costs:
    """What a summary says of the costs of a finished run.

    Summaries of older versions say nothing of the devices of a stage: those of the run count then, of which a mesh always has all.

    Args:
        name: of the run, as it is shown.
        configured: names of the stages that it must have; empty: those that are there.

    Raises:
        InputError: a stage, or a number of one, is missing.
    """
    try:
        entries = {str(entry["name"]): entry for entry in summary.get("stages") or ()}
        hardware = dict(summary.get("hardware") or {})
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"{name}: the stages or the hardware in its summary.json cannot be read."
        ) from None
    if missing := [stage for stage in configured if stage not in entries]:
        raise InputError(
            f"{name}: the run is not finished; its summary.json lacks {', '.join(missing)}."
        )
    if not entries:
        raise InputError(f"{name}: the run is not finished; its summary.json has no stage.")
    devices = hardware.get("devices")
    stages = tuple(_stage(name, entries[stage], devices) for stage in configured or entries)
    kind, cores = hardware.get("device"), hardware.get("cpus")
    if kind and cores and hardware.get("platform") == "cpu":
        kind = f"{kind} of {cores} cores"  # CPUs are all of one kind
    return Costs(name, stages, kind)


def _stage(run: str, entry: Mapping[str, Any], devices: Any) -> StageCost:
    def number(key: str, *, needed: bool = False) -> Any:
        value = entry.get(key)
        if value is None and not needed:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 <= value < math.inf
        ):
            raise InputError(
                f"{run}: {key!r} of stage {entry['name']!r} in its summary.json must be a number, not {value!r}."
            )
        return value

    seconds, own = number("seconds", needed=True), number("devices")
    if own is None and isinstance(devices, int):
        own = devices
    device_seconds = number("device_seconds")
    if device_seconds is None and own is not None:
        device_seconds = seconds * own
    flops = number("flops", needed=True)
    return StageCost(
        str(entry["name"]), number("samples"), number("tokens"), seconds, device_seconds, flops, own
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold an object.")
    return content
