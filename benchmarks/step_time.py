"""Step time of the default recipe's two stages against the same model and step in PyTorch, on this machine's CPU.

    python benchmarks/step_time.py --torch_python .oracle/bin/python [--rounds 5] [--steps 5] [--out benchmarks/results/NAME.md]

Both sides start from the same parameters and read the same packed batches (the first losses are compared), use AdamW with the same
clipping, the same number of threads and the same allocator setting. One worker process each, all alive at once, taking turns: a round is
`steps` steps of every worker; the figure is the median over rounds of the round's median, and the ratio is taken round by round.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
BATCHES = 4


def stage_of(config: str, name: str):
    from mmjax.config import load

    recipe = load(config)
    return recipe, recipe.stages[name]


def prepare(config: str, stage_name: str, folder: pathlib.Path) -> None:
    """Writes the spec, the initial parameters and a few packed batches for both sides."""
    import jax
    import numpy as np

    from mmjax.data.loader import batches
    from mmjax.data.rows import make_rows
    from mmjax.models import parameters
    from mmjax.saved_runs import prepare_tokenizer

    recipe, stage = stage_of(config, stage_name)
    tokenizer, recipe = prepare_tokenizer(recipe, folder)
    stage = recipe.stages[stage_name]
    rows = make_rows(stage.data, stage.model, tokenizer, recipe.seed)
    iterator = batches(rows, stage.batch_size, first_row=0, workers=0)
    taken = [next(iterator)[0] for _ in range(BATCHES)]
    iterator.close()
    arrays = {f"batch:{f.name}": np.stack([getattr(b, f.name) for b in taken]) for f in dataclasses.fields(taken[0])}
    params = parameters.initialize(stage.model, jax.random.key(recipe.seed))
    arrays |= {f"params:{k}": np.asarray(v) for k, v in params.items()}
    np.savez(folder / "data.npz", **arrays)
    optimizer = dataclasses.asdict(stage.optimizer)
    (folder / "spec.json").write_text(json.dumps({"model": dataclasses.asdict(stage.model), "optimizer": optimizer}))


def serve(config: str, stage_name: str, folder: pathlib.Path) -> None:
    """The JAX worker: the step of `python -m mmjax.main`, answering "N" with the seconds per step of N steps."""
    from mmjax import host

    host.prepare()
    import time

    import jax
    import numpy as np

    from mmjax.models import parameters
    from mmjax.saved_runs import prepare_tokenizer
    from mmjax.training import state as training_state
    from mmjax.training.step import make_train_step
    from mmjax.typing import Batch

    recipe, _ = stage_of(config, stage_name)
    _, recipe = prepare_tokenizer(recipe, folder)
    stage = recipe.stages[stage_name]
    stage = dataclasses.replace(stage, optimizer=dataclasses.replace(stage.optimizer, schedule="constant", warmup_steps=0))
    data = dict(np.load(folder / "data.npz"))
    params = {k.removeprefix("params:"): jax.numpy.asarray(v) for k, v in data.items() if k.startswith("params:")}
    fields = {k.removeprefix("batch:"): v for k, v in data.items() if k.startswith("batch:")}
    structure, _ = parameters.abstract(stage.model)
    state = training_state.create(params, stage, jax.random.key(0))
    step = make_train_step(structure, stage)
    print("ready", flush=True)
    count = 0
    for line in sys.stdin:
        seconds, losses = [], []
        for _ in range(int(line)):
            batch = Batch(**{k: v[count % BATCHES] for k, v in fields.items()})
            start = time.perf_counter()
            state, metrics = step(state, batch)
            losses.append(float(metrics.loss.compute()))
            seconds.append(time.perf_counter() - start)
            count += 1
        print(json.dumps({"seconds": statistics.median(seconds), "losses": losses}), flush=True)


class Worker:
    """A process that answers "N" with the median seconds per step of N steps."""

    def __init__(self, command: list[str]):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        while (line := self.process.stdout.readline()).strip() != "ready":
            if not line:
                raise RuntimeError(f"{command} ended before it was ready")

    def run(self, steps: int) -> dict:
        print(steps, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(config: str, stage: str, torch_python: str, rounds: int, steps: int) -> dict:
    """{worker: {"seconds": [per round], "losses": of the first steps}} of one stage."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        subprocess.run([sys.executable, __file__, "prepare", config, stage, name], check=True, cwd=ROOT)
        torch_worker = [torch_python, str(ROOT / "benchmarks/torch_worker.py"), str(folder)]
        commands = {
            "mmjax": [sys.executable, __file__, "serve", config, stage, name],
            "torch eager": torch_worker,
            "torch.compile": [*torch_worker, "compile"],
        }
        workers = {label: Worker(command) for label, command in commands.items()}
        first = {label: worker.run(3)["losses"] for label, worker in workers.items()}  # compiles, and warms the caches
        seconds = {label: [] for label in workers}
        for _ in range(rounds):
            for label, worker in workers.items():
                seconds[label].append(worker.run(steps)["seconds"])
        for worker in workers.values():
            worker.close()
    return {label: {"seconds": seconds[label], "losses": first[label]} for label in commands}


def table(results: dict) -> list[str]:
    lines = [
        "| stage | worker | ms per step: median (min-max) | mmjax / worker, median of rounds (min-max) | losses of the first 3 steps |",
        "|---|---|---|---|---|",
    ]
    for stage, workers in results.items():
        ours = workers["mmjax"]["seconds"]
        for label, result in workers.items():
            ms = [1e3 * s for s in result["seconds"]]
            ratios = [a / b for a, b in zip(ours, result["seconds"], strict=True)]
            losses = ", ".join(f"{loss:.5f}" for loss in result["losses"])
            lines.append(
                f"| {stage} | {label} | {statistics.median(ms):.1f} ({min(ms):.1f}-{max(ms):.1f}) | "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) | {losses} |"
            )
    return lines


def main() -> None:
    if sys.argv[1:2] == ["prepare"]:
        return prepare(sys.argv[2], sys.argv[3], pathlib.Path(sys.argv[4]))
    if sys.argv[1:2] == ["serve"]:
        return serve(sys.argv[2], sys.argv[3], pathlib.Path(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/cos.py")
    parser.add_argument("--stages", nargs="+", default=["pretrain", "finetune"])
    parser.add_argument("--torch_python", default=".oracle/bin/python")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out")
    options = parser.parse_args()
    results = {s: compare(options.config, s, options.torch_python, options.rounds, options.steps) for s in options.stages}
    text = "\n".join(table(results))
    print(text)
    if options.out:
        pathlib.Path(options.out).write_text(text + "\n")
    return None


if __name__ == "__main__":
    main()
