"""Does the cheap pre-training cost quality? The small default against its controls, at equal samples and at equal seconds.

    python benchmarks/cos_quality.py [--seeds 0 1 2] [--arms few-then-many many single scratch] [--runs runs/quality] [--out FILE.md]

Arms: few tokens, then inflated (the default recipe); many tokens in both stages; no pre-training; the plain single-window resampler with
many tokens in both stages. Every run has one core; as many run side by side as there are cores.

"Equal samples": every arm trains on as many rows as the default recipe (without pre-training, all of them in fine-tuning). "Equal
seconds": every arm trains for as many seconds as the slowest of the pre-trained arms. Seconds are steps times the seconds of a step,
which are measured once, at the start, all stages of all arms taking turns on one core: what else the machine does during the hours of the
study changes nothing. The point that comes first is a whole run of `mmjax.main`; the other one continues it from its last state, with a
new warm-up and cosine. Scores are exact matches on the official test questions. An interrupted study goes on where it stopped. Other
settings (--config.stages.pretrain.steps=...) are handed to every run.
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
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

VARIANTS = {"few-then-many": "", "many": "many", "single": "single", "scratch": "scratch"}
TYPES = ("shape", "color", "yes_no")
POINTS = ("equal samples", "equal seconds")
PATIENCE = 3600.0  # seconds for one answer of a worker


# What a step of each arm takes


def config_of(arm: str) -> str:
    return f"configs/cos.py:{VARIANTS[arm]}" if VARIANTS[arm] else "configs/cos.py"


def step_seconds(
    folder: pathlib.Path, rounds: int = 7, steps: int = 4
) -> dict[str, dict[str, float]]:
    """Seconds per step of every arm's stages, on one core, in interleaved rounds; kept in calibration.json."""
    path = folder / "calibration.json"
    if path.exists():
        return json.loads(path.read_text())
    from step_time_batches import default_recipe
    from step_time_folder import write
    from step_time_shapes import Shape
    from step_time_workers import OURS, Worker

    from mmjax.config.load import load

    script, core = str(ROOT / "benchmarks/step_time_jax.py"), str(min(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as name:
        workers = {}
        for arm in VARIANTS:
            for stage in load(config_of(arm)).stages:
                files = pathlib.Path(name, f"{arm}-{stage}")
                files.mkdir()
                write(Shape(f"{arm}-{stage}", *default_recipe(stage, config_of(arm))), files)
                workers[arm, stage] = Worker(
                    ["taskset", "-c", core, sys.executable, script, str(files)], dict(os.environ)
                )
                # Compiles, and warms the caches.
                workers[arm, stage].ask(PATIENCE, do="first", variant=OURS, steps=2)
        taken = {key: [] for key in workers}
        for _ in range(rounds):
            for key, worker in workers.items():
                taken[key].append(
                    worker.ask(PATIENCE, do="run", variant=OURS, steps=steps)["seconds"]
                )
        for worker in workers.values():
            worker.close()
    result: dict[str, dict[str, float]] = {arm: {} for arm in VARIANTS}
    for (arm, stage), values in taken.items():
        result[arm][stage] = statistics.median(values)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1))
    return result


@dataclasses.dataclass(frozen=True)
class Budget:
    """Steps of an arm: those before the last stage, and those of the last stage at each of POINTS."""

    seconds: dict[str, float]  # per step, by stage
    before: dict[str, int]
    last: str
    points: dict[str, int]

    @property
    def first(self) -> str:
        """The point that comes first."""
        return min(POINTS, key=lambda point: self.points[point])

    @property
    def more(self) -> int:
        """Steps from the first point to the other; 0 when they are within 2 %."""
        low, high = sorted(self.points.values())
        return high - low if high > 1.02 * low else 0

    def total_seconds(self, point: str) -> float:
        return (
            sum(self.seconds[stage] * steps for stage, steps in self.before.items())
            + self.seconds[self.last] * self.points[point]
        )


def budgets(seconds: dict[str, dict[str, float]], steps: dict[str, int]) -> dict[str, Budget]:
    """By arm, of arms that have `steps` in their stages. "Equal seconds" are those of the slowest arm that pre-trains."""
    of = {arm: {stage: steps[stage] for stage in stages} for arm, stages in seconds.items()}
    of["scratch"] = {"finetune": sum(steps.values())}
    slowest = max(
        sum(seconds[arm][stage] * count for stage, count in of[arm].items())
        for arm in of
        if arm != "scratch"
    )
    result = {}
    for arm, counts in of.items():
        *before, last = counts
        spent = sum(seconds[arm][stage] * counts[stage] for stage in before)
        points = {
            "equal samples": counts[last],
            "equal seconds": round((slowest - spent) / seconds[arm][last]),
        }
        result[arm] = Budget(seconds[arm], {stage: counts[stage] for stage in before}, last, points)
    return result


# Runs


def command(arm: str, seed: int, workdir: pathlib.Path, budget: Budget) -> list[str]:
    """The main job of one arm, up to its first point."""
    steps = budget.before | {budget.last: budget.points[budget.first]}
    settings = [f"--config.stages.{stage}.steps={count}" for stage, count in steps.items()]
    fixed = [f"--config.seed={seed}", "--config.evaluation.untrained=false"]
    return [
        sys.executable,
        "-m",
        "mmjax.main",
        f"--config={config_of(arm)}",
        f"--workdir={workdir}",
        *fixed,
        *settings,
    ]


def extend(workdir: pathlib.Path, steps: int) -> None:
    """Continues a finished run's last stage for `steps` more, scores it, and writes continued.json."""
    from mmjax.base import host

    host.prepare()
    import jax
    from rich.console import Console

    from mmjax import evaluation
    from mmjax.base.signals import StopSignal
    from mmjax.data.packing.rows import make_rows
    from mmjax.models import parameters
    from mmjax.runs.workdir import Workdir
    from mmjax.training.checkpoint import load_params
    from mmjax.training.logging import Trackers
    from mmjax.training.loop import StageFiles, train_stage
    from mmjax.training.state import InitialParams

    recipe, tokenizer = Workdir(workdir).resolve(Workdir(workdir).recipe())
    stage = list(recipe.stages.values())[-1]
    params, _ = load_params(workdir / "checkpoints" / stage.name / str(stage.steps))
    longer = dataclasses.replace(stage, name="continued", steps=steps)
    folder = workdir / "continued"
    folder.mkdir(exist_ok=True)
    with StopSignal() as stop:
        result = train_stage(
            longer,
            recipe,
            StageFiles(
                checkpoints=folder / "checkpoints",
                parameters=folder / "parameters.txt",
                dump=folder / "nonfinite.json",
            ),
            start=lambda mesh: InitialParams(params, lambda given: given),
            key=jax.random.key(recipe.seed),
            # Other orders and mirrorings than before.
            rows=make_rows(stage.data, stage.model, tokenizer, recipe.seed + 1000),
            held_out=None,
            tracker=Trackers([]),
            stop=stop,
            console=Console(),
        )
        model_def, _ = parameters.abstract(stage.model)
        scores = evaluation.run(
            recipe, model_def, result.params, tokenizer, should_stop=lambda: stop.requested
        )
    (workdir / "continued.json").write_text(json.dumps({"steps": steps, "eval": scores}))


def run_on(cores: "queue.Queue[int]", arguments: list[str], log: pathlib.Path) -> None:
    """Runs a command on a core of its own."""
    core = cores.get()
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            subprocess.run(
                ["taskset", "-c", str(core), *arguments],
                cwd=ROOT,
                stdout=file,
                stderr=file,
                check=True,
            )
    finally:
        cores.put(core)


def study(arms: list[str], seeds: list[int], folder: pathlib.Path, plan: dict[str, Budget]) -> None:
    """Runs what is missing: every arm of every seed, then its continuation."""
    cores: queue.Queue[int] = queue.Queue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)

    def first(arm: str, seed: int) -> None:
        workdir = folder / f"{arm}-{seed}"
        if not (workdir / "report.html").exists():
            run_on(cores, command(arm, seed, workdir, plan[arm]), folder / f"{arm}-{seed}.log")

    def other(arm: str, seed: int) -> None:
        workdir = folder / f"{arm}-{seed}"
        if plan[arm].more and not (workdir / "continued.json").exists():
            run_on(
                cores,
                [sys.executable, __file__, "extend", str(workdir), str(plan[arm].more)],
                folder / f"{arm}-{seed}.log",
            )

    runs = [(arm, seed) for arm in arms for seed in seeds]
    for part in (first, other):
        with concurrent.futures.ThreadPoolExecutor(cores.qsize()) as pool:
            for job in [pool.submit(part, *run) for run in runs]:
                job.result()


def scores_of(folder: pathlib.Path, arm: str, seed: int, budget: Budget, point: str) -> dict:
    """The scores of a run at a point."""
    later = budget.more and point != budget.first
    path = folder / f"{arm}-{seed}" / ("continued.json" if later else "summary.json")
    return json.loads(path.read_text())["eval"]["easy_vqa"]


def spread(values: list[float]) -> str:
    """Mean, and the lowest and highest."""
    return f"{statistics.mean(values):.4f} ({min(values):.4f}-{max(values):.4f})"


def table(
    arms: list[str], seeds: list[int], folder: pathlib.Path, plan: dict[str, Budget]
) -> list[str]:
    """Markdown: a line per arm and point."""
    lines = [
        "| point | arm | steps of the stages | seconds | accuracy: mean (min-max) | shape | color | yes/no |",
        "|---" * 8 + "|",
    ]
    for point in POINTS:
        for arm in arms:
            budget = plan[arm]
            scores = [scores_of(folder, arm, seed, budget, point) for seed in seeds]
            steps = " + ".join(
                str(count) for count in [*budget.before.values(), budget.points[point]]
            )
            by_type = " | ".join(
                spread([score["by_type"][kind] for score in scores]) for kind in TYPES
            )
            total = spread([score["score"] for score in scores])
            lines.append(
                f"| {point} | {arm} | {steps} | {budget.total_seconds(point):.0f} | {total} | {by_type} |"
            )
    return lines


def main() -> None:
    if sys.argv[1:2] == ["extend"]:
        extend(pathlib.Path(sys.argv[2]), int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--pretrain_steps", type=int, help="other than the recipe's")
    parser.add_argument("--finetune_steps", type=int, help="other than the recipe's")
    parser.add_argument("--runs", default="runs/quality")
    parser.add_argument("--out")
    options = parser.parse_args()
    from mmjax.config.load import load

    folder = pathlib.Path(options.runs).absolute()
    steps = {name: stage.steps for name, stage in load("configs/cos.py").stages.items()}
    given = {"pretrain": options.pretrain_steps, "finetune": options.finetune_steps}
    plan = budgets(
        step_seconds(folder), steps | {name: count for name, count in given.items() if count}
    )
    study(options.arms, options.seeds, folder, plan)
    text = "\n".join(table(options.arms, options.seeds, folder, plan))
    print(text)
    if options.out:
        pathlib.Path(options.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
