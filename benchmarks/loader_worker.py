"""Reads batches as a training run does, in a process of its own, and says how fast and with how much memory.

python loader_worker.py SPEC    (JSON: sources, image_size, workers, batch, warm, batches, samples)
"""

import json
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]


def read(spec: dict) -> dict:
    """Reads `warm` batches, then `batches` that count.

    Returns:
        "images", "seconds", "cpu_seconds" (of all processes) of the latter; "memory" (bytes, all processes): of the process after imports,
        after planning, and the most of `samples` while reading. A sample takes as long as some batches, in which the workers read on: where
        speed is asked for, there should be none.
    """
    import loader_data
    import processes

    import mmjax.data.loader as loader
    from mmjax.data.sources.base import SourceConfig
    from mmjax.recipe.schema import KeyPath, convert

    sources = {
        name: convert(source, SourceConfig, KeyPath(("sources", name)))
        for name, source in spec["sources"].items()
    }
    used = {"imports": processes.memory(processes.family())}
    rows = loader_data.make(sources, spec["image_size"])
    used["planned"] = processes.memory(processes.family())
    images, most = 0, {}
    with loader.batches(rows, spec["batch"], first_row=0, workers=spec["workers"]) as data:
        for _ in range(spec["warm"]):
            next(data)
        family = processes.family()
        cpu, begun = processes.cpu_seconds(family), time.perf_counter()
        for number in range(spec["batches"]):
            batch, _ = next(data)
            images += int(batch.image_mask.sum())
            if spec["samples"] and (number + 1) % max(spec["batches"] // spec["samples"], 1) == 0:
                now = processes.memory(processes.family())
                most = {name: max(value, most.get(name, 0)) for name, value in now.items()}
        seconds = time.perf_counter() - begun
        cpu = processes.cpu_seconds(family) - cpu
    return {
        "images": images,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "memory": used | {"reading": most},
    }


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from mmjax.base import host

    host.prepare()
    print(json.dumps(read(json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
