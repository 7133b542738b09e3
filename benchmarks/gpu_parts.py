"""Runs what gpu_plan.py lists, each part for its share of the time, into one folder. See gpu.sh.

    python benchmarks/gpu_parts.py [--seconds 540] [--out FOLDER] [--parts NAME ...] [--device gpu|cpu]

FOLDER (by default benchmarks/results/gpu-DATE) gets NAME.log of every part, what the parts write, and summary.md: what ran, how long, what
failed and what was skipped, and why. It is written anew after every part, so that it is true whenever the time ends.
"""

import argparse
import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import gpu_plan  # noqa: E402

GRACE = 10.0  # seconds between asking a part to end and ending it
RAN, FAILED, STOPPED, SKIPPED = "ran", "failed", "stopped", "skipped"


@dataclasses.dataclass
class Outcome:
    """What became of a part. said: the last line of its log, or why it was skipped."""

    name: str
    status: str
    seconds: float = 0.0
    said: str = ""


def has_gpu() -> bool:
    """Whether the host shows an NVIDIA device; jax is not started."""
    if pathlib.Path("/dev/nvidiactl").exists():
        return True
    command = shutil.which("nvidia-smi")
    return (
        command is not None and subprocess.run([command, "-L"], capture_output=True).returncode == 0
    )


def run_part(part: gpu_plan.Part, options: argparse.Namespace, own: float, most: float) -> Outcome:
    """Runs a part in a process group of its own, which is ended with all that it has started when its time is up."""
    trial = options.device == "cpu"
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    environment = (
        os.environ
        | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        | ({"JAX_PLATFORMS": "cpu"} if trial else {})
    )
    path = options.out / f"{part.name}.log"
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        command = [
            sys.executable,
            *gpu_plan.filled(
                part.trial if trial else part.command, options.out, scratch, gpu_plan.OWN_USE * own
            ),
        ]
        with path.open("w") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=ROOT, env=environment, start_new_session=True
            )
            try:
                code = process.wait(timeout=most)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                end(process)
        for kept in part.keep:
            if (scratch / kept).exists():
                shutil.copyfile(
                    scratch / kept, options.out / f"{part.name}_{pathlib.Path(kept).name}"
                )
    seconds, said = time.monotonic() - begun, last_line(path)
    if code is None:
        return Outcome(
            part.name, STOPPED, seconds, f"its time of {most:.0f} s was up; it said last: {said}"
        )
    said_of_success = "" if said.startswith("|") else said  # the end of a table says nothing alone
    return (
        Outcome(part.name, RAN, seconds, said_of_success)
        if code == 0
        else Outcome(part.name, FAILED, seconds, f"exit code {code}: {said}")
    )


def end(process: subprocess.Popen) -> None:
    """Ends a part and what it has started; nothing where all have ended."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def last_line(path: pathlib.Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else "nothing"


def summary(outcomes: list[Outcome], options: argparse.Namespace, spent: float) -> str:
    """Markdown."""
    lines = [
        f"# Benchmarks, {options.device}",
        "",
        f"{time.strftime('%Y-%m-%d %H:%M')}, {spent:.0f} of {options.seconds:.0f} s.",
        "",
    ]
    if options.device == "cpu":
        lines += ["A trial without a GPU, with the smallest shapes: the figures mean nothing.", ""]
    lines += ["| part | | seconds | |", "|---|---|---|---|"]
    lines += [
        f"| {one.name} | {one.status} | {one.seconds:.0f} | {one.said.replace('|', '/')} |"
        for one in outcomes
    ]
    return "\n".join(lines) + "\n"


def run_all(
    parts: list[gpu_plan.Part], options: argparse.Namespace, cache: pathlib.Path
) -> list[Outcome]:
    """Runs the parts in their order. After a device that is no GPU nothing else is run."""
    begun, outcomes = time.monotonic(), []
    reasons = {part.name: gpu_plan.lacking(part, cache, options.device == "cpu") for part in parts}

    def note(outcome: Outcome) -> None:
        outcomes.append(outcome)
        (options.out / "summary.md").write_text(
            summary(outcomes, options, time.monotonic() - begun)
        )
        print(
            f"{outcome.name}: {outcome.status}, {outcome.seconds:.0f} s. {outcome.said}", flush=True
        )

    for number, part in enumerate(parts):
        later = [other for other in parts[number + 1 :] if not reasons[other.name]]
        left = options.seconds - (time.monotonic() - begun)
        own = gpu_plan.limit(left, part, later)
        if reasons[part.name]:
            note(Outcome(part.name, SKIPPED, said=reasons[part.name]))
        elif gpu_plan.stop_after(left, own) < part.least:
            note(
                Outcome(
                    part.name,
                    SKIPPED,
                    said=f"no time left: {own:.0f} s are its share, and it needs {part.least:.0f}",
                )
            )
        else:
            note(
                run_part(
                    part,
                    options,
                    own,
                    gpu_plan.stop_after(left, own) if part.name != "device" else min(left, 60),
                )
            )
            if (
                part.name == "device"
                and options.device == "gpu"
                and not outcomes[-1].said.startswith("gpu ")
            ):
                break
    return outcomes


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=540.0, help="for all of it")
    parser.add_argument("--out", type=pathlib.Path, help="folder of results")
    parser.add_argument("--parts", nargs="+", help="names; all by default")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    if options.device == "gpu" and not has_gpu():
        print(
            "This machine has no NVIDIA GPU; --device cpu runs a trial with the smallest shapes.",
            file=sys.stderr,
        )
        return 2
    from mmjax.base import host

    torch = gpu_plan.has_package("torch") and gpu_plan.has_package("transformers")
    parts = gpu_plan.parts(torch)
    names = [part.name for part in parts]
    if unknown := [name for name in options.parts or () if name not in names]:
        print(f"There is no part {unknown[0]!r}; there are {', '.join(names)}.", file=sys.stderr)
        return 2
    options.out = (
        options.out or ROOT / "benchmarks" / "results" / time.strftime("gpu-%Y-%m-%d")
    ).resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    # So that the part under way is ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    outcomes = run_all(
        [part for part in parts if options.parts is None or part.name in options.parts],
        options,
        host.cache_dir(),
    )
    if (
        options.device == "gpu"
        and outcomes
        and outcomes[0].name == "device"
        and not outcomes[0].said.startswith("gpu ")
    ):
        print(
            "jax does not see the GPU of this machine; device.log says what it sees.",
            file=sys.stderr,
        )
        return 2
    return int(any(outcome.status in (FAILED, STOPPED) for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
