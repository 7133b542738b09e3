"""A training step of mmjax beside the same model and step in PyTorch: step time, throughput, memory, compilation.

    python benchmarks/step_time.py [--out FOLDER] [--shapes NAME ...] [--variants NAME ...] [--torch_python PYTHON] [--seconds S]

Shapes: default_pretrain and default_finetune (the stages of configs/cos.py with its own packed rows), cos_pretrain_{32,48,80,336},
cos_finetune_{336,1296} (CoS-7B), llm_1b and llm_8b-slice (text alone), surrogate (the stage "encoder" of configs/graft.py) and packed
(mmjax packs samples of many lengths, PyTorch pads them). On a GPU they have the sizes of their papers, in bfloat16; a CPU gets smaller
ones in float32, and the results say what of them is smaller. Writes FOLDER/step_time.json (every round), step_time.md and step_time.svg.

The opponent, torch_baseline/, is made of transformers' own modules, with torch.compile, fused AdamW, and attention pinned on a GPU to the
backend that was fastest for each kind of call. Both sides read the same batches, train and freeze the same parameters, recompute the same
activations, run the head on the same number of positions, and on a CPU have the same allocator setting. Where parameters are shared, the
first losses and gradient norms have to agree before anything is timed; large shapes on a GPU draw their own. The workers are processes that
take turns; a figure is the median over rounds of the seconds per step of a turn, and ratios are taken round by round.

Shapes that the time does not suffice for are skipped, by name. Exit code 1: a shape failed, such as by losses that do not agree. 2: no
interpreter has torch and transformers, or an option is wrong. 130: Ctrl-C.
"""

import argparse
import json
import os
import pathlib
import shlex
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
LEAST_SECONDS = 15.0  # that have to be left for a shape to begin
VARIANTS = ("eager", "compile", "max-autotune")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=pathlib.Path, help="folder for step_time.json, step_time.md and step_time.svg"
    )
    parser.add_argument(
        "--shapes", nargs="+", help="names of shapes; by default those for the device"
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        help="of PyTorch; by default eager and compile, and all on a GPU",
    )
    parser.add_argument(
        "--torch_python",
        help="interpreter with torch and transformers; $MMJAX_ORACLE, .oracle/bin/python or this one",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--turn", type=float, help="seconds of a worker's turn, about: 0.5 on a GPU, 1 on a CPU"
    )
    parser.add_argument("--seconds", type=float, help="for all of it: 500 on a GPU, 1500 on a CPU")
    parser.add_argument("--attention", help="the implementation of attention that mmjax prefers")
    options = parser.parse_args(given)
    for name in ("rounds", "turn", "seconds"):
        if (value := getattr(options, name)) is not None and not value > 0:
            parser.error(f"--{name} must be positive, not {value}")
    return options


def versions() -> dict[str, str]:
    import importlib.metadata

    found = {}
    for name in ("jaxlib", "jax-cuda13-plugin", "flax", "optax"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def gpu_memory() -> float:
    """Bytes of the first GPU. Raises ValueError if nvidia-smi does not say."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60
        ).stdout
        return float(listed.splitlines()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise ValueError(f"nvidia-smi does not say how much memory the GPU has: {error}") from error


def run(
    record: dict[str, Any], options: argparse.Namespace, settings: Any, on_gpu: bool, say: Any
) -> None:
    """Fills the record, shape by shape."""
    import step_time_shapes
    from step_time_measure import Clock, measure
    from step_time_stages import needed
    from step_time_workers import MEMORY_SHARE

    share = MEMORY_SHARE * gpu_memory() if on_gpu else 0.0
    names = options.shapes or step_time_shapes.names(on_gpu)
    shapes = [step_time_shapes.shape(name, on_gpu=on_gpu, memory=share) for name in names]
    clock = Clock(options.seconds or (500.0 if on_gpu else 1500.0))
    for number, shape in enumerate(shapes):
        if clock.total_left < LEAST_SECONDS:
            record["skipped"][shape.name] = "no time was left"
        elif on_gpu and (bytes_ := needed(shape.stage)) > share:
            record["skipped"][shape.name] = (
                f"it needs {bytes_ / 2**30:.0f} GiB, and a side has {share / 2**30:.0f}"
            )
        else:
            clock.begin(len(shapes) - number)
            begun = time.monotonic()
            result = measure(shape, settings, clock, say)
            notice(record, result)
            save(record, options.out)
            say(f"{shape.name}: {time.monotonic() - begun:.0f} s")


def notice(record: dict[str, Any], result: dict[str, Any]) -> None:
    """Adds a shape's results, and what its workers saw of the machine. One whose time was up before mmjax could begin is skipped."""
    ours = result["workers"]["mmjax"]
    if ours.get("error") == "the time was up" and not ours.get("seconds"):
        record["skipped"][result["name"]] = "its time was up before anything was timed"
        return
    record["shapes"].append(result)
    for worker in result["workers"].values():
        record["versions"] |= worker.pop("versions", None) or {}
    record["peak_flops"] = max(
        filter(None, (ours.get("peak_flops"), record.get("peak_flops"))), default=None
    )
    if not record["on_cpu"]:
        record["device"] = ours.get("device", record["device"])


def save(record: dict[str, Any], out: pathlib.Path | None) -> None:
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "step_time.json").write_text(json.dumps(record, indent=1))


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    from mmjax.base import host

    host.prepare()
    import step_time_workers

    environment, on_gpu = dict(os.environ), not host.computes_on_cpu()
    # This process only prepares; the workers have the environment as it was.
    os.environ["JAX_PLATFORMS"] = "cpu"
    python = step_time_workers.find_torch(options.torch_python)
    if python is None:
        tried = options.torch_python or f"$MMJAX_ORACLE, .oracle/bin/python and {sys.executable}"
        print(
            f"No interpreter with torch and transformers: not {tried}. `make oracle` makes one.",
            file=sys.stderr,
        )
        return 2
    from processor import processor
    from step_time_measure import Settings

    variants = tuple(options.variants or (VARIANTS if on_gpu else VARIANTS[:2]))
    device = "cuda" if on_gpu else "cpu"
    settings = Settings(
        python,
        device,
        variants,
        options.rounds,
        options.turn or (0.5 if on_gpu else 1.0),
        environment,
        options.attention,
    )
    command = shlex.join(
        ["python", "benchmarks/step_time.py", *(sys.argv[1:] if given is None else given)]
    )
    record: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "command": command,
        "versions": versions(),
        "device": processor(),
    }
    record |= {"on_cpu": not on_gpu, "shapes": [], "skipped": {}}
    try:
        run(record, options, settings, on_gpu, lambda text: print(text, flush=True))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = (
            f" {options.out / 'step_time.json'} has them."
            if options.out and record["shapes"]
            else ""
        )
        print(f"Interrupted; {len(record['shapes'])} shapes were done.{kept}", file=sys.stderr)
        return 130
    return finish(record, options.out)


def finish(record: dict[str, Any], out: pathlib.Path | None) -> int:
    """Prints the tables, writes all files, and gives the exit code."""
    import step_time_chart
    import step_time_table

    text = step_time_table.page(record)
    print(text)
    save(record, out)
    if out:
        (out / "step_time.md").write_text(text)
        if (drawn := step_time_chart.draw(record)) is not None:
            (out / "step_time.svg").write_text(drawn)
    for failure in (failed := step_time_table.failures(record)):
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
