"""Does the time of a training step grow as its work does: 1 to 8 images a row, and 512 to 8192 text tokens a row.

    python benchmarks/scaling.py [--shapes small] [--images 1 2 4 8] [--text 512 1024 ...] [--batch 1] [--seconds 300] [--out PREFIX]

Writes PREFIX.md and PREFIX.json. The step is that of the training loop, on rows of one segment: first the images, then the text. FLOPs
are those of `mmjax.training.flops` (forward and backward of the matrix products, causal attention halved), split into the products of
queries, keys and values in attention, which grow with the square of a row's length, and the rest, which must grow with the row. "time",
"work" and "time per FLOP" are relative to the first line of a table: 1 is linear, more is a cost that the work does not explain. The lines
of a table take turns, round by round; figures are medians. What does not fit into the time or the memory is said.

Shapes: small (the default recipe's widths) for a CPU; 7b-slice (widths of CoS-7B, few layers) and 1b (Llama-3.2-1B and CLIP ViT-L/14) for a
GPU, in bfloat16.
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
TEXT_BESIDE_IMAGES = 128
IMAGES_BESIDE_TEXT = 1

Point = tuple[int, int]
"""(images, text tokens) of a row."""


def axes(images: list[int], text: list[int]) -> dict[str, list[Point]]:
    """The lines of both tables."""
    return {
        "images": [(count, TEXT_BESIDE_IMAGES) for count in images],
        "text": [(IMAGES_BESIDE_TEXT, length) for length in text],
    }


def work(shape: str, point: Point, batch: int) -> dict:
    """What a step on such rows is: its size and its FLOPs."""
    from synthetic import make_stage

    from mmjax.training.flops import step_flops

    stage = make_stage(shape, images=point[0], text=point[1], batch=batch)
    flops = step_flops(stage.model, stage)
    tokens = point[1] + point[0] * stage.model.visual_tokens
    return {
        "images": point[0],
        "text": point[1],
        "tokens": tokens,
        "flops": flops.total,
        "attention": flops.row.attention * flops.rows,
    }


def measure(shape: str, points: list[Point], options: argparse.Namespace, clock) -> list[dict]:
    """The lines of a table: `work`, and "seconds" of a step round by round, or "error"."""
    from attention_timing import Measured, Skipped, interleaved
    from measured_step import MeasuredStep
    from synthetic import make_stage

    stages = [
        make_stage(shape, images=images, text=text, batch=options.batch) for images, text in points
    ]
    measured = MeasuredStep(stages[0])

    def runner(stage):
        placed = []

        def run(number: int) -> float:
            if clock.is_up() and not placed:
                raise Skipped("skipped: the time was up")
            placed[:] = placed or [measured.place(stage)]
            return measured.run(placed[0], number)

        return Measured(run)

    runs = {str(number): runner(stage) for number, stage in enumerate(stages)}
    results = interleaved(runs, options.rounds, options.sample, clock)
    return [
        work(shape, point, options.batch) | results[str(number)]
        for number, point in enumerate(points)
    ]


def table(lines: list[dict]) -> list[str]:
    """Markdown; ratios are to the first line that was measured."""
    found = [
        "| images | text tokens | tokens a row | ms a step: median (min-max) | GFLOPs a step | of these attention | time | work | "
        "time per FLOP |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    first = next((line for line in lines if line.get("seconds") and "error" not in line), None)
    for line in lines:
        size = f"| {line['images']} | {line['text']} | {line['tokens']} |"
        counted = f"{line['flops'] / 1e9:.2f} | {line['attention'] / line['flops']:.0%}"
        if first is None or "error" in line:
            found.append(f"{size} {line['error']} | {counted} | | | |")
            continue
        ms = [1e3 * seconds for seconds in line["seconds"]]
        longer, more = (
            statistics.median(line["seconds"]) / statistics.median(first["seconds"]),
            line["flops"] / first["flops"],
        )
        spread = f"{statistics.median(ms):.2f} ({min(ms):.2f}-{max(ms):.2f})"
        found.append(
            f"{size} {spread} | {counted} | {longer:.2f} | {more:.2f} | {longer / more:.2f} |"
        )
    return found


def page(record: dict) -> str:
    """All tables."""
    titles = {
        "images": f"Images a row, beside {TEXT_BESIDE_IMAGES} text tokens",
        "text": f"Text tokens a row, beside {IMAGES_BESIDE_TEXT} image",
    }
    lines = [
        f"# Step time against work, {record['device']}",
        "",
        f"{record['date']}, jax {record['jax']}.",
        "",
        f"    {record['command']}",
    ]
    for shape, tables in record["shapes"].items():
        for axis, found in tables.items():
            lines += ["", f"{shape}, batch {record['batch']}. {titles[axis]}:", "", *table(found)]
    return "\n".join(lines) + "\n"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shapes", nargs="+", help="small, 7b-slice, 1b; by default small, on a GPU 7b-slice"
    )
    parser.add_argument("--images", nargs="*", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--text", nargs="*", type=int, default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--batch", type=int, default=1, help="rows a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--sample", type=float, default=0.2, help="seconds of a sample, at least one step"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=300.0,
        help="for all of it; at least three rounds of what has begun are finished",
    )
    parser.add_argument("--out", help="PREFIX.md and PREFIX.json")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from mmjax.base import host

    host.prepare()
    import jax
    from attention_timing import Clock
    from synthetic import MODELS

    shapes = options.shapes or (["small"] if jax.default_backend() == "cpu" else ["7b-slice"])
    if unknown := sorted(set(shapes) - set(MODELS)):
        print(f"There is no shape {unknown[0]!r}; there are {', '.join(MODELS)}.", file=sys.stderr)
        return 2
    command = shlex.join(
        ["python", "benchmarks/scaling.py", *(sys.argv[1:] if given is None else given)]
    )
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "command": command,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    record |= {"batch": options.batch, "shapes": {shape: {} for shape in shapes}}
    tables = [
        (shape, axis, points)
        for shape in shapes
        for axis, points in axes(options.images, options.text).items()
        if points
    ]
    clock = Clock(options.seconds)
    for number, (shape, axis, points) in enumerate(tables):
        clock.begin(len(tables) - number)
        record["shapes"][shape][axis] = measure(shape, points, options, clock)
        print(
            "\n".join(["", f"{shape}, {axis}", *table(record["shapes"][shape][axis])]), flush=True
        )
        if options.out:
            pathlib.Path(f"{options.out}.md").write_text(page(record))
            pathlib.Path(f"{options.out}.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
