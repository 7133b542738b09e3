"""Does the cheap pre-training cost quality? The small default against its controls, at equal samples and at equal seconds.

    python benchmarks/cos_quality.py [--seeds 0 1 2] [--arms few-then-many many scratch single] [--runs runs/quality] [--out FILE.md]

Arms: few tokens, then inflated (the default recipe); many tokens in both stages; no pre-training (as many fine-tuning samples as the
others have in both stages); the plain single-window resampler with many tokens in both stages. Every run has one core; as many run side by
side as there are cores. "Equal samples" scores each run at its end. "Equal seconds" continues each run but the slowest of its seed, from
its last state, with a new warm-up and cosine, until it has trained for as many seconds as the slowest, and scores it again. Seconds are
those of loading and stepping; compilation, evaluation and saving are left out. Scores are exact matches on the official test questions. An
interrupted study goes on where it stopped. Other settings (--config.stages.pretrain.steps=...) are handed to every run.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import queue
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

VARIANTS = {"few-then-many": "", "many": "many", "scratch": "scratch", "single": "single"}
TYPES = ("shape", "color", "yes_no")


def command(arm: str, seed: int, workdir: pathlib.Path, overrides: list[str]) -> list[str]:
    """The main job of one arm."""
    config = f"configs/cos.py:{VARIANTS[arm]}" if VARIANTS[arm] else "configs/cos.py"
    fixed = [f"--config.seed={seed}", "--config.evaluation.untrained=false"]
    return [sys.executable, "-m", "mmjax.main", f"--config={config}", f"--workdir={workdir}", *fixed, *overrides]


def trained_seconds(summary: dict) -> float:
    """Seconds of loading and stepping over all stages."""
    return sum(stage["seconds_by_cause"]["input"] + stage["seconds_by_cause"]["step"] for stage in summary["stages"])


def extend(workdir: pathlib.Path, seconds: float) -> None:
    """Continues a finished run's last stage for about `seconds` more, scores it, and writes continued.json."""
    from mmjax import host

    host.prepare()
    import jax
    from rich.console import Console

    from mmjax import evaluation
    from mmjax.data.rows import make_rows
    from mmjax.models import parameters
    from mmjax.run import prepare_tokenizer
    from mmjax.training.checkpoint import load_params
    from mmjax.training.loop import train_stage
    from mmjax.training.preemption import StopSignal
    from mmjax.training.result import StageFiles
    from mmjax.training.trackers import Trackers
    from mmjax.workdir import Workdir

    tokenizer, recipe = prepare_tokenizer(Workdir(workdir).recipe(), workdir)
    stage = list(recipe.stages.values())[-1]
    spent = json.loads((workdir / "summary.json").read_text())["stages"][-1]["seconds_by_cause"]
    steps = max(1, round(seconds * stage.steps / (spent["input"] + spent["step"])))
    params, _ = load_params(workdir / "checkpoints" / stage.name / str(stage.steps))
    longer = dataclasses.replace(stage, name="continued", steps=steps)
    folder = workdir / "continued"
    folder.mkdir(exist_ok=True)
    with StopSignal() as stop:
        result = train_stage(
            longer,
            recipe,
            StageFiles(folder / "checkpoints", folder / "nonfinite.json"),
            start=lambda: params,
            key=jax.random.key(recipe.seed),
            rows=make_rows(stage.data, stage.model, tokenizer, recipe.seed + 1000),  # other orders and mirrorings than before
            held_out=None,
            tracker=Trackers([]),
            stop=stop,
            console=Console(),
        )
        structure, _ = parameters.abstract(stage.model)
        scores = evaluation.run(recipe, structure, result.params, tokenizer, should_stop=lambda: stop.requested)
    taken = result.seconds["input"] + result.seconds["step"]
    (workdir / "continued.json").write_text(json.dumps({"steps": steps, "seconds": taken, "eval": scores}))


def run_on(cores: "queue.Queue[int]", arguments: list[str], log: pathlib.Path) -> None:
    """Runs a command on a core of its own."""
    core = cores.get()
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            subprocess.run(["taskset", "-c", str(core), *arguments], cwd=ROOT, stdout=file, stderr=file, check=True)
    finally:
        cores.put(core)


def study(arms: list[str], seeds: list[int], folder: pathlib.Path, overrides: list[str]) -> None:
    """Runs what is missing: every arm of every seed, then its continuation."""
    cores: queue.Queue[int] = queue.Queue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)
    with concurrent.futures.ThreadPoolExecutor(cores.qsize()) as pool:
        jobs = {}
        for seed in seeds:
            for arm in arms:
                workdir = folder / f"{arm}-{seed}"
                if not (workdir / "report.html").exists():
                    extra = [*overrides, *equal_samples(arm)]
                    jobs[arm, seed] = pool.submit(run_on, cores, command(arm, seed, workdir, extra), folder / f"{arm}-{seed}.log")
        for job in jobs.values():
            job.result()
        jobs = {}
        for seed in seeds:
            seconds = {arm: trained_seconds(read(folder, arm, seed)) for arm in arms}
            for arm in arms:
                workdir, missing = folder / f"{arm}-{seed}", max(seconds.values()) - seconds[arm]
                if missing > 0.02 * max(seconds.values()) and not (workdir / "continued.json").exists():
                    arguments = [sys.executable, __file__, "extend", str(workdir), str(missing)]
                    jobs[arm, seed] = pool.submit(run_on, cores, arguments, folder / f"{arm}-{seed}.log")
        for job in jobs.values():
            job.result()


def equal_samples(arm: str) -> list[str]:
    """Without pre-training, its samples go to fine-tuning."""
    if arm != "scratch":
        return []
    from mmjax.config import load

    steps = sum(stage.steps for stage in load("configs/cos.py").stages.values())
    return [f"--config.stages.finetune.steps={steps}"]


def read(folder: pathlib.Path, arm: str, seed: int) -> dict:
    return json.loads((folder / f"{arm}-{seed}" / "summary.json").read_text())


def spread(values: list[float]) -> str:
    """Mean, and the lowest and highest."""
    return f"{statistics.mean(values):.4f} ({min(values):.4f}-{max(values):.4f})"


def table(arms: list[str], seeds: list[int], folder: pathlib.Path) -> list[str]:
    """Markdown: a line per arm and point."""
    lines = ["| arm | point | training seconds | TFLOPs | accuracy: mean (min-max) | shape | color | yes/no |", "|---" * 8 + "|"]
    for arm in arms:
        summaries = [read(folder, arm, seed) for seed in seeds]
        seconds = [trained_seconds(summary) for summary in summaries]
        flops = statistics.mean(sum(stage["flops"] for stage in summary["stages"]) for summary in summaries) / 1e12
        lines.append(row(arm, "equal samples", seconds, f"{flops:.1f}", [summary["eval"]["easy_vqa"] for summary in summaries]))
        longer = [folder / f"{arm}-{seed}" / "continued.json" for seed in seeds]
        if any(path.exists() for path in longer):
            more = [json.loads(path.read_text()) if path.exists() else None for path in longer]
            total = [s + (m["seconds"] if m else 0.0) for s, m in zip(seconds, more, strict=True)]
            scores = [(m or s)["eval"]["easy_vqa"] for s, m in zip(summaries, more, strict=True)]
            lines.append(row(arm, "equal seconds", total, "", scores))
    return lines


def row(arm: str, point: str, seconds: list[float], flops: str, scores: list[dict]) -> str:
    by_type = " | ".join(spread([score["by_type"][kind] for score in scores]) for kind in TYPES)
    return f"| {arm} | {point} | {statistics.mean(seconds):.0f} | {flops} | {spread([score['score'] for score in scores])} | {by_type} |"


def main() -> None:
    if sys.argv[1:2] == ["extend"]:
        extend(pathlib.Path(sys.argv[2]), float(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--runs", default="runs/quality")
    parser.add_argument("--out")
    options, overrides = parser.parse_known_args()
    folder = pathlib.Path(options.runs).absolute()
    study(options.arms, options.seeds, folder, overrides)
    text = "\n".join(table(options.arms, options.seeds, folder))
    print(text)
    if options.out:
        pathlib.Path(options.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
