"""One shape: both sides are started, their first steps compared, and then they are timed in turns."""

import dataclasses
import math
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import step_time_folder
from step_time_batches import padding, samples
from step_time_shapes import Shape
from step_time_workers import LABELS, OURS, TORCH, Worker, WorkerError, start_ours, start_torch

TOLERANCE = 1e-4  # relative, of the first loss and the first gradient norm, in float32
LATER_TOLERANCE = 1e-3  # of the steps after it: the optimizer magnifies rounding
FIRST_STEPS = 3
FEWEST_ROUNDS = 3
MOST_STEPS = 50
AUTOTUNE_SECONDS = 60.0  # that a shape has to have left of its share
Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How shapes are measured.

    Attributes:
        environment: of the workers. device: "cpu" or "cuda". turn: seconds of a turn, about. attention: what mmjax prefers.
        rounds: how many, or FEWEST_ROUNDS if the time of the shape is up before.
    """

    python: str
    device: str
    variants: tuple[str, ...]
    rounds: int
    turn: float
    environment: dict[str, str]
    attention: str | None = None


class Clock:
    """Shares what is left of the seconds among the shapes that are left; one may have three shares, if that much is left."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic):
        self.now, self.end = now, now() + seconds
        self.deadline = self.hard = self.end

    def begin(self, shapes: int) -> None:
        share = max(self.end - self.now(), 0.0) / shapes
        self.deadline, self.hard = self.now() + share, min(self.now() + 3 * share, self.end)

    @property
    def total_left(self) -> float:
        return self.end - self.now()

    def left(self) -> float:
        """Seconds until a worker is ended."""
        return max(self.hard - self.now(), 0.1)

    def is_up(self) -> bool:
        return self.now() >= self.deadline


def describe(shape: Shape, pairs: list) -> Result:
    """The shape as the results tell of it. Tokens and FLOPs are those of a step, padding aside, and the same for both sides."""
    from mmjax.training.flops import step_flops

    ours, theirs = ([pair[side] for pair in pairs] for side in range(2))
    return {
        "name": shape.name,
        "title": shape.title,
        "scaled": shape.scaled,
        "compared": shape.compared,
        "samples": statistics.mean(map(samples, ours)),
        "tokens": statistics.mean(float((batch.segment_ids > 0).sum()) for batch in ours),
        "flops": step_flops(shape.stage.model, shape.stage).total,
        "padding": {
            "mmjax": statistics.mean(map(padding, ours)),
            "torch": statistics.mean(map(padding, theirs)),
        },
        "workers": {},
    }


def measure(shape: Shape, settings: Settings, clock: Clock, say: Callable[[str], None]) -> Result:
    """The results of a shape; "failed" says why it counts as failed, and `workers` has "error" where one was not timed."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        result = describe(shape, step_time_folder.write(shape, folder, settings.attention))
        early = [variant for variant in settings.variants if variant != "max-autotune"]
        workers = _start(shape, settings, folder, (OURS, *early))
        try:
            _first(result, workers, settings, clock, say)
            if faults := disagreements(result):
                return result | {"failed": "; ".join(faults)}
            rounds(result, workers, settings, clock)
            if "max-autotune" in settings.variants:
                _autotune(result, shape, workers, settings, clock, folder, say)
        except KeyboardInterrupt:
            for worker in set(workers.values()):
                worker.kill()  # it may be busy for minutes
            raise
        finally:
            for worker in set(workers.values()):
                worker.close()
    return result


def _start(
    shape: Shape, settings: Settings, folder: pathlib.Path, names: Iterable[str]
) -> dict[str, Worker]:
    """Workers by variant. What is compared begins anew in every variant, which then has a process of its own; else one serves them all."""
    found: dict[str, Worker] = {}
    for name in names:
        shared = next((worker for other, worker in found.items() if other in TORCH), None)
        if name == OURS:
            found[name] = start_ours(folder, settings.environment)
        elif shared is not None and not shape.compared:
            found[name] = shared
        else:
            found[name] = start_torch(
                settings.python, folder, settings.device, settings.environment
            )
    return found


def _first(
    result: Result,
    workers: dict[str, Worker],
    settings: Settings,
    clock: Clock,
    say: Callable[[str], None],
) -> None:
    """The first steps of every worker, with their compilations: beside each other on a GPU, where timing begins later."""
    job = {"do": "first", "steps": FIRST_STEPS}
    if settings.device == "cuda":
        for name, worker in workers.items():
            worker.send(variant=name, **job)
    for name, worker in workers.items():
        say(f"{result['name']}, {LABELS[name]}: compiling")
        found: Result = {}
        result["workers"][name] = found
        try:
            answer = (
                worker.receive(clock.left())
                if settings.device == "cuda"
                else worker.ask(clock.left(), variant=name, **job)
            )
        except (WorkerError, TimeoutError) as error:
            found["error"] = str(error)
            continue
        found |= {"first_steps": answer.pop("seconds"), **answer}
        found["versions"] = worker.versions


def disagreements(result: Result) -> list[str]:
    """What is wrong with the first steps: mmjax could not take them, a loss is not finite, or the sides do not agree."""
    workers = result["workers"]
    ours = workers[OURS]
    if "error" in ours:
        return [f"mmjax: {ours['error']}"]
    found = []
    for name, worker in workers.items():
        if "error" in worker:
            continue
        if not all(map(math.isfinite, (*worker["losses"], *worker["norms"]))):
            found.append(f"{LABELS[name]}: a loss or a gradient is not finite")
        elif result["compared"] and name != OURS:
            found += [f"{LABELS[name]}: {difference}" for difference in differences(ours, worker)]
    return found


def differences(ours: Result, theirs: Result) -> list[str]:
    """Where the first steps of two workers are further apart than rounding."""
    checks = [("gradient norm", "norms", 0, TOLERANCE), ("loss", "losses", 0, TOLERANCE)]
    checks += [("loss", "losses", step, LATER_TOLERANCE) for step in range(1, FIRST_STEPS)]
    pairs = (
        (kind, step, tolerance, ours[key][step], theirs[key][step])
        for kind, key, step, tolerance in checks
    )
    return [
        f"the {kind} of step {step + 1} is {other:.7g}, of mmjax {mine:.7g}"
        for kind, step, tolerance, mine, other in pairs
        if abs(mine - other) > tolerance * abs(mine)
    ]


def rounds(result: Result, workers: dict[str, Worker], settings: Settings, clock: Clock) -> None:
    """Turns of all workers that have taken their first steps, so many steps each that the slowest has a turn of `settings.turn`."""
    timed = {
        name: worker for name, worker in workers.items() if "error" not in result["workers"][name]
    }
    slowest = max(min(result["workers"][name]["first_steps"][1:]) for name in timed)
    steps = min(max(round(settings.turn / max(slowest, 1e-9)), 1), MOST_STEPS)
    for name in timed:
        result["workers"][name] |= {"steps": steps, "seconds": [], "memory": 0}
    for done in range(settings.rounds):
        if done >= FEWEST_ROUNDS and clock.is_up():
            break
        for name, worker in timed.items():
            found = result["workers"][name]
            if "error" in found:
                continue
            try:
                answer = worker.ask(clock.left(), do="run", variant=name, steps=steps)
            except (WorkerError, TimeoutError) as error:
                found["error"] = str(error)
                continue
            found["seconds"].append(answer["seconds"])
            found["memory"] = max(found["memory"], answer["memory"])
    if "error" in result["workers"][OURS]:
        result["failed"] = f"mmjax: {result['workers'][OURS]['error']}"


def _autotune(
    result: Result,
    shape: Shape,
    workers: dict[str, Worker],
    settings: Settings,
    clock: Clock,
    folder: pathlib.Path,
    say: Callable[[str], None],
) -> None:
    """A second programme of rounds, with mmjax alone, once all else is measured: it may take minutes to compile, and be ended."""
    name = "max-autotune"
    alive = OURS in workers and "error" not in result["workers"][OURS]
    if not alive or clock.deadline - clock.now() < AUTOTUNE_SECONDS:
        result["workers"][name] = {
            "error": "skipped: the shape had too little time left to compile it"
        }
        return
    shared = [
        worker
        for other, worker in workers.items()
        if other in TORCH and "error" not in result["workers"][other]
    ]
    own = (
        shared[0]
        if shared and not shape.compared
        else start_torch(settings.python, folder, settings.device, settings.environment)
    )
    workers[name] = own
    second = {
        "name": shape.name,
        "compared": shape.compared,
        "workers": {OURS: dict(result["workers"][OURS])},
    }
    _first(second, {name: own}, settings, clock, say)
    faults = disagreements(second)
    result["workers"][name] = second["workers"][name]
    if faults:
        result["failed"] = "; ".join(faults)
    elif "error" not in result["workers"][name]:
        rounds(second, {OURS: workers[OURS], name: own}, settings, clock)
        result["workers"][name] = second["workers"][name] | {
            "beside": second["workers"][OURS]["seconds"]
        }
