"""The input pipeline: how fast, where its time goes, whether a training step waits for it, and what memory it takes.

    python benchmarks/loader.py [--parts rate phases wait memory] [--workers 0 1 2 4] [--out PREFIX]

Writes PREFIX.md and PREFIX.json. Needs the data packages of mmjax (grain, ...).

rate: images per second through `mmjax.data.loader.batches`, the way of a training run from files to batches in this process, with 0
(threads of this process) and more worker processes; and per second of processor time, which is what one core does. Every image is read
for the first time, so that no cache helps; the first batches are not counted.
phases: the same work in one thread, phase by phase, and the loader's own way as a whole beside it, which does not tokenise again what it
has tokenised to plan the rows, as long as it remembers it.
wait: the share of a step that waiting for input takes, from the log of a real run of --config with --wait_workers processes, after its
first step. A batch that comes while a step is under way was not waited for. The requirement is less than 1 %.
memory: of this process and its workers while they read the same images, cut into 1, 3, 10 and 30 JSONL sources (beside easy-vqa where it
is installed, with a tenth of the rows). "pss" counts shared pages once. The decoded images are about four times what one image cache
may hold, so a cache for every source shows. It must be flat.

Images are generated: smooth areas, edges, a little noise; some files, each under many names. They come from the page cache of the system,
not from a disk.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PARTS = ("rate", "phases", "wait", "memory")
SAMPLES = 8  # of the memory while reading
WARM = 4  # batches, per worker process or thread, that are not counted
MOST_WAIT = 0.01  # of a step
WORKER = pathlib.Path(__file__).with_name("loader_worker.py")


def read_in_process(
    sources: dict,
    image_size: int,
    workers: int,
    batch: int,
    warm: int,
    batches: int,
    samples: int = 0,
) -> dict:
    """`loader_worker.read` in a fresh process. Raises RuntimeError with what it said last, if it fails."""
    spec = {"sources": {name: dataclasses.asdict(config) for name, config in sources.items()}}
    spec |= {
        "image_size": image_size,
        "workers": workers,
        "batch": batch,
        "warm": warm,
        "batches": batches,
        "samples": samples,
    }
    # Reading needs no accelerator.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, str(WORKER), json.dumps(spec)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    if done.returncode:
        raise RuntimeError(
            f"the reading process ended with code {done.returncode}: {done.stderr.strip()[-500:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def measure_rate(options: argparse.Namespace, form: str, size: tuple[int, int]) -> list[dict]:
    import loader_data

    lines = []
    for workers in options.workers:
        warm = WARM * max(workers, 1)
        with tempfile.TemporaryDirectory() as folder:
            sources = loader_data.write_sources(
                pathlib.Path(folder), 1, form, size, options.images + warm * options.batch
            )
            found = read_in_process(
                sources,
                options.image_size,
                workers,
                options.batch,
                warm,
                options.images // options.batch,
            )
        lines.append(
            {"form": form, "size": size, "workers": workers}
            | {name: found[name] for name in ("images", "seconds", "cpu_seconds")}
        )
    return lines


def measure_phases(options: argparse.Namespace, form: str, size: tuple[int, int]) -> dict:
    import loader_data
    import loader_phases

    from mmjax.data.text.templates import TEMPLATES
    from mmjax.data.text.tokenizer import WordTokenizer

    with tempfile.TemporaryDirectory() as folder:
        sources = loader_data.write_sources(pathlib.Path(folder), 1, form, size, options.images)
        (config,) = sources.values()
        rows = loader_data.make(sources, options.image_size)
        tokenizer = WordTokenizer.build(config.open(TEMPLATES["plain"]).texts())
        # Warms up: what happens only once happens here.
        loader_phases.by_phase(config, rows.shape, tokenizer, options.batch, options.batch)
        phases = loader_phases.by_phase(
            config, rows.shape, tokenizer, options.images, options.batch
        )
        whole = loader_phases.whole(rows, options.images, options.batch)
    return {"form": form, "size": size, "phases": phases, "whole": whole}


def measure_memory(options: argparse.Namespace, sources: int) -> dict:
    import loader_data

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        found = loader_data.with_easy_vqa(
            loader_data.write_sources(folder, sources, "jpeg", (640, 480), options.memory_images)
        )
        batches = round(options.memory_images / (1 - loader_data.EASY_VQA_SHARE) / options.batch)
        result = read_in_process(
            found,
            options.memory_image_size,
            options.memory_workers,
            options.batch,
            1,
            max(batches, 1),
            SAMPLES,
        )
    return {"sources": sources, "easy_vqa": "easy_vqa" in found, "memory": result["memory"]}


def run(options: argparse.Namespace, record: dict) -> None:
    """Fills the record part by part, and prints and saves it after each."""
    import loader_table
    import loader_wait

    sets = [(form, size) for form in options.forms for size in options.sizes]
    if "rate" in options.parts:
        record["rate"] = [line for form, size in sets for line in measure_rate(options, form, size)]
        save(options, record)
    if "phases" in options.parts:
        record["phases"] = [measure_phases(options, form, size) for form, size in sets]
        save(options, record)
    if "wait" in options.parts:
        record["wait"] = {
            "config": options.config,
            "workers": options.wait_workers,
            "steps": options.steps,
        }
        record["wait"]["stages"] = loader_wait.measure(
            options.config, options.wait_workers, options.steps
        )
        save(options, record)
    if "memory" in options.parts:
        record["memory"] = {
            "workers": options.memory_workers,
            "images": options.memory_images,
            "image_size": options.memory_image_size,
        }
        record["memory"]["lines"] = [
            measure_memory(options, sources) for sources in options.sources
        ]
        save(options, record)
    print(loader_table.page(record, MOST_WAIT))


def save(options: argparse.Namespace, record: dict) -> None:
    import loader_table

    if options.out:
        pathlib.Path(f"{options.out}.md").write_text(loader_table.page(record, MOST_WAIT))
        pathlib.Path(f"{options.out}.json").write_text(json.dumps(record, indent=1) + "\n")


def size(text: str) -> tuple[int, int]:
    """Width and height of "640x480". Raises ArgumentTypeError for anything else."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size; write WIDTHxHEIGHT, such as 640x480"
        )
    return int(width), int(height)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--forms", nargs="+", choices=("png", "jpeg"), default=["png", "jpeg"])
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=size,
        default=[(336, 336), (640, 480)],
        help="of the files, WIDTHxHEIGHT",
    )
    parser.add_argument(
        "--image_size", type=int, default=336, help="pixels a side that the encoder reads"
    )
    parser.add_argument("--batch", type=int, default=16, help="rows of one image each")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2, 4])
    parser.add_argument(
        "--images", type=int, default=2048, help="that are read for a line of rate or phases"
    )
    parser.add_argument("--config", default="configs/cos.py", help="of wait")
    parser.add_argument("--wait_workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200, help="of wait, in every stage")
    parser.add_argument("--sources", nargs="+", type=int, default=[1, 3, 10, 30], help="of memory")
    parser.add_argument("--memory_images", type=int, default=800, help="in all sources together")
    parser.add_argument("--memory_image_size", type=int, default=672)
    parser.add_argument("--memory_workers", type=int, default=2)
    parser.add_argument("--out", help="PREFIX.md and PREFIX.json")
    options = parser.parse_args(given)
    if options.images < options.batch or options.memory_images < max(options.sources):
        parser.error(
            "--images must be at least --batch, and --memory_images at least the number of sources"
        )
    return options


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    from mmjax.base import host

    host.prepare()
    try:
        import grain
    except ModuleNotFoundError as error:
        print(f"The loader needs the package {error.name}: pip install mmjax.", file=sys.stderr)
        return 2
    command = shlex.join(
        ["python", "benchmarks/loader.py", *(sys.argv[1:] if given is None else given)]
    )
    record = {"date": time.strftime("%Y-%m-%d"), "command": command, "grain": grain.__version__}
    record |= {
        "processor": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "image_size": options.image_size,
        "batch": options.batch,
    }
    run(options, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
