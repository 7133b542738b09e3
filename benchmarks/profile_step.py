"""The operations that a training step spends its time in, from a trace of the profiler.

    python benchmarks/profile_step.py --shape default_finetune [--steps 3] [--top 10] [--out FOLDER]
    python benchmarks/profile_step.py [--shape small] [--images 1] [--text 512] [--batch 1] [--steps 3] [--top 10] [--out FOLDER]

Prints the longest operations of the device and writes FOLDER/profile.md, FOLDER/profile.json and, in FOLDER/trace, what the profiler wrote:
perfetto_trace.json.gz there can be opened at ui.perfetto.dev. Times are of the device, kernel by kernel; without an accelerator they are of
the host's threads, of which several may work at once. Operations that others stand in (loops) count with the time beside those only.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
from typing import TYPE_CHECKING

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from mmjax.recipe.recipe import Stage
    from mmjax.typing import Batch


def chosen_shape(options: argparse.Namespace) -> "tuple[str, Stage, Batch]":
    """The shape in words, its stage and a batch. Raises ValueError if there is no such shape."""
    import jax
    import step_time_shapes
    from synthetic import MODELS, make_batch, make_stage

    if options.shape in MODELS:
        stage = make_stage(
            options.shape, images=options.images, text=options.text, batch=options.batch
        )
        size = f"{options.shape}, {options.batch} rows of {options.images} images and {options.text} text tokens"
        return size, stage, make_batch(stage, 0)
    if options.shape not in step_time_shapes.NAMES:
        raise ValueError(
            f"There is no shape {options.shape!r}; there are {', '.join((*MODELS, *step_time_shapes.NAMES))}."
        )
    shape = step_time_shapes.shape(options.shape, on_gpu=jax.default_backend() == "gpu")
    return f"{options.shape}, {shape.title}", shape.stage, shape.batches(1)[0][0]


def trace(stage: "Stage", batch: "Batch", steps: int, folder: pathlib.Path) -> tuple[float, str]:
    """Traces the steps into the folder, after one that compiles and one that warms up; returns the seconds of a step, and the program."""
    import jax
    from measured_step import MeasuredStep

    measured, batch = MeasuredStep(stage), jax.device_put(batch)
    measured.run(batch, 2)
    settings = jax.profiler.ProfileOptions()
    settings.python_tracer_level = 0  # calls of Python would crowd out what the device did
    with jax.profiler.trace(str(folder), create_perfetto_trace=True, profiler_options=settings):
        seconds = measured.run(batch, steps) / steps
    return seconds, measured.program(batch)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape",
        help="tiny, small, 7b-slice, 1b, or one of step_time.py; by default small, on a GPU 7b-slice",
    )
    parser.add_argument("--images", type=int, default=1, help="images a row")
    parser.add_argument("--text", type=int, default=512, help="text tokens a row")
    parser.add_argument("--batch", type=int, default=1, help="rows a step")
    parser.add_argument("--steps", type=int, default=3, help="that are traced")
    parser.add_argument("--top", type=int, default=10, help="operations that are shown")
    parser.add_argument("--out", type=pathlib.Path, help="folder")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from mmjax.base import host

    host.prepare()
    import jax
    import trace_events

    options.shape = options.shape or ("small" if jax.default_backend() == "cpu" else "7b-slice")
    try:
        size, stage, batch = chosen_shape(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    with contextlib.ExitStack() as stack:
        folder = (
            options.out / "trace"
            if options.out
            else pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        )
        folder.mkdir(parents=True, exist_ok=True)
        seconds, program = trace(stage, batch, options.steps, folder)
        found = trace_events.operations(trace_events.read(folder))
    if not found:
        print("The trace holds no operation of a device or of a compiled program.", file=sys.stderr)
        return 1
    lines = [
        f"{size}, {jax.devices()[0].device_kind}: {1e3 * seconds:.2f} ms a step while traced.",
        "",
    ]
    lines += trace_events.table(found, options.steps, options.top, trace_events.origins(program))
    print("\n".join(lines))
    if options.out:
        (options.out / "profile.md").write_text("\n".join(lines) + "\n")
        record = {
            "shape": size,
            "seconds": seconds,
            "steps": options.steps,
            "operations": [dataclasses.asdict(one) for one in found],
        }
        (options.out / "profile.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
