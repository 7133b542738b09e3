"""The host's processor, as results name it."""

import os
import pathlib
import platform


def processor() -> str:
    """Its name, and how many of its cores this process may use."""
    path = pathlib.Path("/proc/cpuinfo")
    listed = path.read_text().splitlines() if path.exists() else []
    name = next(
        (line.partition(":")[2].strip() for line in listed if line.startswith("model name")),
        platform.processor(),
    )
    return f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores of {name}"
