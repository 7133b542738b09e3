"""Attention of mmjax beside that of others: on a GPU in bfloat16, without one in float32 at the shapes of the default recipe.

    python benchmarks/attention.py [--out FOLDER] [--shapes NAME ...] [--implementations NAME ...] [--rounds 7] [--quick]

Writes FOLDER/attention.json (every round's figure), FOLDER/attention.md and FOLDER/attention.svg, and ends within 8 minutes: each shape has
its share of the time, and what has not begun when it is up is skipped, which the table says. Exit code 1: a kernel of mmjax failed the
correctness gate or computed wrongly; it is not timed, the others are. 4: nothing happened any more, and the process was ended.

What is counted. Useful FLOPs, by one rule for all: 4 x batch x heads x head dimension x scores that the mask shows, of which a row's own
key counts half (so causal counts half); the backward pass 2.5 times that, whatever an implementation computes again. "forward" is the
forward pass. "backward" is the backward pass alone, from what its forward pass kept to dq, dk and dv: the function of `jax.vjp` handed to a
second program, `torch.autograd.grad` on a graph that is retained. "gradient" is both in one program (3.5 times). No figure is a difference.
The lower bound of the time is that of the FLOPs at 790 TFLOP/s or of the least bytes at 4.3 TB/s, whichever is longer; a second one takes
the ceilings that are measured first.

How it is timed. Implementations take turns, round by round; figures are medians over rounds, ratios are taken round by round. Inputs are
normal random numbers, drawn by each framework, in as many sets as fill the second-level cache four times; dispatches take them in turn.
jax: many dispatches between two waits for the device, each holding as many independent calls as outlast its cost to the host. torch on a
GPU: a CUDA graph of one call for every set, replayed between two events. On a CPU: calls one after the other. A sample is about `--sample`
seconds. Both frameworks may take 0.45 of the GPU's memory each. Outputs and gradients of every implementation are compared with the float32
reference at the very shape before it is timed.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cudnn-cu13", "torch", "triton", "tokamax")
ARRAYS = ("segments", "prefixes", "blocks")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=pathlib.Path, help="folder for attention.json, attention.md and attention.svg"
    )
    parser.add_argument("--shapes", nargs="+", help="names of shapes; all by default")
    parser.add_argument(
        "--implementations",
        nargs="+",
        help="names; by default all that are here, of ours those to be judged",
    )
    parser.add_argument("--directions", nargs="+", choices=("forward", "backward", "gradient"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--sample", type=float, help="seconds of a sample; 0.02 on a GPU, 0.2 on a CPU"
    )
    parser.add_argument("--minutes", type=float, default=7.5, help="for all of it")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="3 rounds, shorter samples: whether it runs, not how fast it is",
    )
    parser.add_argument(
        "--config", default="configs/cos.py", help="recipe whose shapes are taken on a CPU"
    )
    parser.add_argument(
        "--torch_python", default=os.environ.get("MMJAX_ORACLE", str(ROOT / ".oracle/bin/python"))
    )
    # The process behind the correctness gate.
    parser.add_argument("--gate", metavar="NAME", help=argparse.SUPPRESS)
    # The programme for a GPU on whatever is here, with lengths divided by this: what it prints means nothing.
    parser.add_argument("--shrink", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.quick:
        options.rounds, options.sample = min(options.rounds, 3), options.sample or 0.005
    return options


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def as_json(record: dict) -> str:
    """The record; of masks only the lengths of documents are of interest, and those are in the titles."""

    def plain(value: object) -> object:
        assert dataclasses.is_dataclass(value) and not isinstance(value, type), value
        case = {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if field.name not in ARRAYS
        }
        directions = ("forward", "backward", "gradient")
        return case | {
            "flops": {d: value.flops(d) for d in directions},
            "least_seconds": {d: value.least_seconds(d) for d in directions},
        }

    return json.dumps(record, indent=1, default=plain)


def page(record: dict) -> str:
    """The results as Markdown."""
    import attention_table

    lines = [
        f"# Attention, {record['device']}",
        "",
        f"{record['date']}, {record['device']}; {', '.join(f'{name} {version}' for name, version in record['versions'].items())}.",
        "",
        f"    {record['command']}",
        "",
    ]
    if ceilings := record.get("ceilings"):
        lines += [
            f"Ceilings: {ceilings['flops'] / 1e12:.0f} TFLOP/s, {ceilings['bandwidth'] / 1e12:.2f} TB/s.",
            "",
        ]
    for name, gate in record.get("gate", {}).items():
        lines += [
            f"Correctness gate, {name}: "
            + ("passed." if gate["passed"] else f"FAILED. {gate['reason']}"),
            "",
        ]
    lines += attention_table.lines(record)
    if memory := record.get("memory"):
        lines += [
            "",
            "Temporaries of the compiled gradient, causal, one row:",
            "",
            *attention_table.memory_lines(memory),
        ]
    return (
        "\n".join([*lines, *(["", f"ENDED: {record['ended']}"] if "ended" in record else [])])
        + "\n"
    )


def failures(record: dict) -> list[str]:
    """What of mmjax computed wrongly, or could not be run at all."""
    gates = [
        f"{name}: {gate['reason']}"
        for name, gate in record.get("gate", {}).items()
        if not gate["passed"]
    ]
    wrong = [
        f"{name} at {entry['case'].name}, {direction}: {result['error']}"
        for entry in record.get("cases", [])
        for direction, results in entry["directions"].items()
        for name, result in results.items()
        if name in record["ours"] and result.get("error", "").startswith("ArithmeticError")
    ]
    return gates + wrong


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")
    from mmjax.base import host

    host.prepare()
    if options.gate:
        import attention_gate

        attention_gate.answer(options.gate)
        return 0
    command = shlex.join(
        ["python", "benchmarks/attention.py", *(sys.argv[1:] if given is None else given)]
    )
    record: dict = {"date": time.strftime("%Y-%m-%d"), "command": command, "versions": versions()}

    def save() -> None:
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "attention.json").write_text(as_json(record))

    on_gpu = not host.computes_on_cpu() or options.shrink > 1
    if on_gpu:
        import attention_gpu as benchmark
    else:
        print(
            "There is no GPU here: the shapes of the default recipe in float32 on the CPU instead.",
            flush=True,
        )
        import attention_cpu as benchmark
    options.sample = options.sample or (0.02 if on_gpu else 0.2)
    benchmark.run(record, options, lambda text: print(text, flush=True), save)
    save()
    text = page(record)
    print(text)
    if options.out:
        (options.out / "attention.md").write_text(text)
        import attention_chart

        (options.out / "attention.svg").write_text(attention_chart.draw(record))
    for failure in (failed := failures(record)):
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
