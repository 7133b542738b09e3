"""Memory and processor time of this process and of what it has started, from /proc."""

import os
import pathlib
from collections.abc import Mapping

PROC = pathlib.Path("/proc")


def descendants(parents: Mapping[int, int], root: int) -> set[int]:
    """The root and all below it, of a table from process to parent."""
    found = {root}
    while more := {process for process, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def family() -> set[int]:
    """This process and all that it has started, directly or not.

    Raises:
        ValueError: there is no /proc.
    """
    if not (PROC / "self" / "stat").exists():
        raise ValueError("memory of processes is read from /proc, which this system does not have")
    parents = {}
    for path in PROC.glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(fields(path.read_text())[1])
        except OSError:
            continue  # it has ended
    return descendants(parents, os.getpid())


def fields(stat: str) -> list[str]:
    """The fields of /proc/N/stat after the name, which is in brackets and may hold spaces: state, parent, ..."""
    return stat.rpartition(")")[2].split()


def cpu_seconds(processes: set[int]) -> float:
    """Processor time of user and system that they have taken; those that have ended count nothing."""
    ticks = 0
    for process in processes:
        try:
            found = fields((PROC / str(process) / "stat").read_text())
        except OSError:
            continue
        ticks += int(found[11]) + int(found[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory(processes: set[int]) -> dict[str, float]:
    """Bytes: "rss", in which shared pages count in every process, and "pss", in which each has its part of them; no "pss" where the
    kernel does not say it."""
    found: dict[str, float] = {"rss": 0, "pss": 0}
    for process in processes:
        try:
            text = (PROC / str(process) / "smaps_rollup").read_text()
            for name in found:
                found[name] += of_rollup(text, name)
        except FileNotFoundError:
            if not (PROC / str(process)).exists():
                continue
            found["pss"] = float("nan")
            found["rss"] += int(
                (PROC / str(process) / "statm").read_text().split()[1]
            ) * os.sysconf("SC_PAGE_SIZE")
        except (ProcessLookupError, KeyError):
            continue  # it is ending
    return found if found["pss"] == found["pss"] else {"rss": found["rss"]}


def of_rollup(text: str, name: str) -> int:
    """Bytes of a line of smaps_rollup, "rss" or "pss". Raises KeyError if there is none."""
    for line in text.splitlines():
        if line.lower().startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
