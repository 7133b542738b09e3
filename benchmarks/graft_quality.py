"""Does an encoder that was trained on a surrogate serve the whole model? configs/graft.py against its baselines and controls.

    python benchmarks/graft_quality.py [--seeds 0 1 2] [--steps 96] [--arms graft full ...] [--runs runs/graft-quality] [--out FILE.md]

| arm | what is scored |
|---|---|
| surrogate | encoder and surrogate, before grafting |
| zero-shot | the same encoder in the whole model |
| graft 20 % | after the last stage on 20 % of the data |
| graft 10 % | after the last stage alone, on 10 %, from what `python -m mmjax.graft` made of the same run |
| full | the whole model in both stages, on all of the data: baseline |
| lora | the same with low-rank updates: baseline |
| random, early | another cut; early blocks replaced: controls, scored before and after grafting |
| foreign | the surrogate of a model with other embeddings; its encoder before the target, and a connector aligned anew: control |
| cos | few tokens on the surrogate, inflated when grafted |

The first four are one run. `graft 20 %` and `full` are trained from every seed, all else from the first one. Runs follow each other and
have all cores; an interrupted study goes on where it stopped. `--steps` are those of a stage on all of the data; other settings
(--config.evaluation.limit=...) are handed to every run.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILE = "configs/graft.py"
TARGET = "fetched:smollm2"
EVERY_SEED = ("graft", "full")
VARIANTS = {
    "graft": "",
    "full": "full",
    "lora": "lora",
    "random": "random",
    "early": "early",
    "foreign": "foreign",
    "cos": "cos",
}
MEASURES = ("caption nll", "beside wrong images", "CIDEr-D", "easy-vqa")


@dataclasses.dataclass(frozen=True)
class Study:
    """Where runs are kept, and what all have in common."""

    folder: pathlib.Path
    steps: int
    settings: tuple[str, ...]

    def workdir(self, arm: str, seed: int) -> pathlib.Path:
        return self.folder / f"{arm}-{seed}"

    def command(self, arm: str, seed: int, *flags: str) -> list[str]:
        """The main job of an arm, or another mode of it."""
        variant = VARIANTS.get(arm, arm)
        steps = {"graft": 0.2, "random": 0.2, "early": 0.2, "cos": 0.2, "after": 0.1}.get(arm, 1.0)
        first = {"full": ("connector",), "lora": ("connector",), "after": ()}.get(
            arm, ("translator", "encoder")
        )
        counts = dict.fromkeys(first, self.steps) | {"decoder": max(1, round(self.steps * steps))}
        return [
            *(
                sys.executable,
                "-m",
                "mmjax.main",
                f"--config={FILE}{':' + variant if variant else ''}",
            ),
            *(f"--workdir={self.workdir(arm, seed)}", f"--config.seed={seed}"),
            *(f"--config.stages.{stage}.steps={count}" for stage, count in counts.items()),
            *self.settings,
            *flags,
        ]

    def call(self, arm: str, seed: int, arguments: list[str]) -> None:
        """Runs a command, and shows only where what it says is kept."""
        log = self.folder / f"{arm}-{seed}.log"
        print(f"{arm}, seed {seed}: {log}", flush=True)
        with log.open("a") as file:
            subprocess.run(arguments, cwd=ROOT, stdout=file, stderr=file, check=True)


def train(study: Study, arm: str, seed: int, *flags: str) -> None:
    """An arm, up to its last score."""
    if not (study.workdir(arm, seed) / "report.html").exists():
        study.call(arm, seed, study.command(arm, seed, *flags))


def score_before(study: Study, arm: str, seed: int) -> None:
    """Encoder and surrogate, then the same encoder in the whole model: both noted in the run's evaluations.jsonl."""
    done = {(record["stage"], record["step"]) for record in evaluations(study, arm, seed)}
    if ("encoder", study.steps) not in done:
        checkpoint = study.workdir(arm, seed) / "checkpoints" / "encoder" / str(study.steps)
        study.call(
            arm, seed, study.command(arm, seed, "--mode=evaluate", f"--checkpoint={checkpoint}")
        )
    if ("decoder", 0) not in done:
        study.call(arm, seed, study.command(arm, seed, "--mode=evaluate", "--begin=decoder"))


def evaluations(study: Study, arm: str, seed: int) -> list[dict]:
    path = study.workdir(arm, seed) / "evaluations.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(study: Study, arm: str, seed: int, scored_before: bool) -> None:
    """Everything of an arm that is missing; `scored_before`: also at the points before its last, and after other shares of the data."""
    if arm == "foreign":
        other = study.folder / "foreign-decoder"
        if not other.exists():
            study.call(
                arm,
                seed,
                [
                    sys.executable,
                    "benchmarks/foreign_decoder.py",
                    f"--weights={TARGET}",
                    f"--out={other}",
                ],
            )
        train(study, arm, seed, f"--config.stages.translator.init_from.decoder={other}")
        return
    train(study, arm, seed)
    if not scored_before:
        return
    if arm in ("graft", "random", "early", "cos"):
        score_before(study, arm, seed)
    if arm == "graft":
        grafted = study.folder / f"grafted-{seed}"
        if not grafted.exists():
            flags = [
                f"--encoder={study.workdir(arm, seed)}",
                f"--decoder={TARGET}",
                f"--out={grafted}",
            ]
            study.call("after", seed, [sys.executable, "-m", "mmjax.graft", *flags])
        train(study, "after", seed, f"--config.stages.decoder.init_from.model={grafted}")


# What came of it


def measures(result: dict) -> tuple[float, ...]:
    """In the order of MEASURES."""
    captions = result["captions"]
    return captions["nll"], captions["nll_shuffled"], captions["score"], result["easy_vqa"]["score"]


def scores(study: Study, arm: str, seed: int) -> dict[str, tuple[float, ...]]:
    """By line of the table, those of a run that there are."""
    path = study.workdir(arm, seed) / "summary.json"
    if not path.exists():
        return {}
    final = json.loads(path.read_text())["eval"]
    stages = list(json.loads((path.parent / "config.json").read_text())["stages"].items())
    for record in evaluations(study, arm, seed):
        # Of some of the images, as the recipe asks, the score of the end is noted there.
        if (record["stage"], record["step"]) == (stages[-1][0], stages[-1][1]["steps"]):
            final = final | record["eval"]
    if not final:
        return {}
    names = {
        "graft": "graft 20 %",
        "after": "graft 10 %",
        "foreign": "foreign, connector aligned anew",
    }
    found = {
        names.get(
            arm, arm if arm in ("full", "lora") else f"{arm}, after the last stage"
        ): measures(final)
    }
    before = {("encoder", study.steps): "surrogate", ("decoder", 0): "zero-shot"}
    for record in evaluations(study, arm, seed):
        name = before.get((record["stage"], record["step"]))
        if name:
            found[name if arm == "graft" else f"{arm}, {name}"] = measures(record["eval"])
    return found


def spread(values: list[float]) -> str:
    """Mean, and the lowest and highest of several."""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def table(study: Study, runs: list[tuple[str, int]]) -> list[str]:
    """Markdown: a line for each point."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for arm, seed in runs:
        for name, values in scores(study, arm, seed).items():
            found.setdefault(name, []).append(values)
    lines = [f"| point | seeds | {' | '.join(MEASURES)} |", "|---" * (2 + len(MEASURES)) + "|"]
    for name, values in found.items():
        lines.append(
            f"| {name} | {len(values)} | {' | '.join(spread(list(column)) for column in zip(*values, strict=True))} |"
        )
    return lines


def ledger(study: Study, runs: list[tuple[str, int]]) -> list[str]:
    """Markdown: minutes and FLOPs by stage of each arm, mean over its seeds."""
    stages: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for arm, seed in runs:
        path = study.workdir(arm, seed) / "summary.json"
        for stage in json.loads(path.read_text())["stages"] if path.exists() else ():
            stages.setdefault((arm, stage["name"]), []).append(
                (stage["seconds"] / 60, stage["flops"] / 1e12)
            )
    lines = ["| arm | stage | minutes | TFLOP |", "|---|---|---|---|"]
    for (arm, stage), values in stages.items():
        minutes, flops = (statistics.mean(column) for column in zip(*values, strict=True))
        lines.append(f"| {arm} | {stage} | {minutes:.1f} | {flops:.1f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/graft-quality"))
    parser.add_argument("--out", type=pathlib.Path)
    options, settings = parser.parse_known_args()
    if options.steps < 40:
        parser.error(
            f"--steps must be 40 or more, not {options.steps}: 10 % of the data are then the 4 steps that the schedule needs"
        )
    study = Study(options.runs.absolute(), options.steps, tuple(settings))
    study.folder.mkdir(parents=True, exist_ok=True)
    first, *others = options.seeds
    runs = [(arm, first) for arm in options.arms] + [
        (arm, seed) for seed in others for arm in options.arms if arm in EVERY_SEED
    ]
    for arm, seed in runs:
        run(study, arm, seed, scored_before=seed == first)
    runs += [("after", first)] if "graft" in options.arms else []
    text = "\n".join([*table(study, runs), "", *ledger(study, runs)])
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
