"""What benchmarks/gpu.sh runs: the parts, what each needs, and its share of the time. Standard library only."""

import dataclasses
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence

STOPPED_AFTER = 1.5
"""Times the share of a part, where there is time left: commands finish what they have begun."""
OWN_USE = 0.85
"""Of its share, that a command is told to use: it also starts and ends."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A command.

    Attributes:
        command: of the interpreter; {out} is the folder of results, {scratch} one that is removed, {seconds} the time that it may use.
        trial: the same without a GPU, with the smallest shapes.
        share: of the time, in proportion to those of the other parts. least: seconds under which it is not begun.
        packages: that it imports beside those that mmjax cannot do without. files: below the cache of mmjax, that it reads.
        keep: files in {scratch} that are results.
    """

    name: str
    command: tuple[str, ...]
    trial: tuple[str, ...]
    share: float
    least: float
    packages: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()


DEVICE = (
    "-c",
    "import jax, sys; device = jax.devices()[0]; "
    "print(device.platform, device.device_kind, 'python', sys.version.split()[0], 'jax', jax.__version__)",
)
TINY_ROWS = ("--shapes", "tiny", "--images", "1", "2", "--text", "16", "32", "--sample", "0.01")
TRAINING = ("-m", "mmjax.main", "--config=configs/cos.py{variant}", "--workdir={scratch}/run")
FEW_STEPS = (
    "--config.stages.pretrain.steps={steps}",
    "--config.stages.finetune.steps={steps}",
    "--config.evaluation.limit={limit}",
)
TRAINING_PACKAGES = (
    "absl",
    "array_record",
    "clu",
    "einops",
    "filelock",
    "grain",
    "jinja2",
    "ml_collections",
    "PIL",
    "rich",
    "safetensors",
    "tensorboardX",
    "tokenizers",
    "easy_vqa",
)
TEST_PACKAGES = ("pytest", "pytest_timeout", "hypothesis", "beartype")


def parts(torch: bool) -> list[Part]:
    """All of them, in the order in which they run: what matters most comes first.

    Args:
        torch: whether the interpreter has PyTorch and transformers, to run beside.
    """
    beside = ("--torch_python", sys.executable) if torch else ()
    scripts = {
        name: f"benchmarks/{name}.py"
        for name in ("attention", "step_time", "decode", "scaling", "profile_step")
    }
    timed = ("--seconds", "{seconds}")
    return [
        Part("device", DEVICE, DEVICE, 1, 5),
        Part(
            "attention",
            (scripts["attention"], "--out", "{out}/attention", "--minutes", "{minutes}"),
            (scripts["attention"], "--out", "{out}/attention", "--minutes", "{minutes}", "--quick"),
            30, 60,
        ),
        Part(
            "step_time",
            (scripts["step_time"], "--out", "{out}/step_time", *timed),
            (scripts["step_time"], "--out", "{out}/step_time", *timed),
            25, 45,
        ),
        Part(
            "decode",
            (scripts["decode"], "--out", "{out}/decode", *timed, *beside),
            (scripts["decode"], "--out", "{out}/decode", *timed, "--shapes", "tiny", "--rounds", "3"),
            15, 30,
        ),
        Part(
            "scaling",
            (scripts["scaling"], "--out", "{out}/scaling", *timed),
            (scripts["scaling"], "--out", "{out}/scaling", *timed, *TINY_ROWS),
            10, 30,
        ),
        Part(
            "profile",
            (scripts["profile_step"], "--out", "{out}/profile", "--text", "2048"),
            (scripts["profile_step"], "--out", "{out}/profile", "--shape", "tiny", "--text", "16"),
            6, 25,
        ),
        Part(
            "training",
            _training(":smollm2", 30, 16), _training("", 3, 4), 13, 60, TRAINING_PACKAGES, ("smollm2", "dinov2-small"),
            ("run/summary.json", "run/metrics.jsonl", "run/report.html"),
        ),
        Part(
            "kernel_tests",
            ("-m", "pytest", "tests/kernels", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider"),
            ("-m", "pytest", "tests/kernels/test_mask.py", "-q", "-p", "no:cacheprovider"),
            3, 15, TEST_PACKAGES,
        ),
    ]  # fmt: skip


def _training(variant: str, steps: int, limit: int) -> tuple[str, ...]:
    """The command of a short run; what is filled in later stays in braces."""
    filled = {"{variant}": variant, "{steps}": str(steps), "{limit}": str(limit)}
    found = []
    for word in (*TRAINING, *FEW_STEPS):
        for place, value in filled.items():
            word = word.replace(place, value)
        found.append(word)
    return tuple(found)


def has_package(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def lacking(
    part: Part, cache: pathlib.Path, trial: bool, has: Callable[[str], bool] = has_package
) -> str:
    """Why a part cannot run here; empty: it can. A trial trains on what a package ships, without fetched files."""
    packages = [name for name in part.packages if not has(name)]
    if packages:
        return f"missing: {', '.join(packages)}"
    files = [] if trial else [name for name in part.files if not (cache / name).exists()]
    return (
        f"not fetched: {', '.join(files)} (python -m mmjax.fetch {' '.join(files)})"
        if files
        else ""
    )


def limit(left: float, part: Part, later: Iterable[Part]) -> float:
    """Seconds that a part should take, of those that are left for it and the later ones: what one does not use is shared by the others."""
    return left * part.share / (part.share + sum(other.share for other in later))


def stop_after(left: float, own: float) -> float:
    """Seconds after which a part is stopped."""
    return min(left, STOPPED_AFTER * own)


def filled(
    command: Sequence[str], out: pathlib.Path, scratch: pathlib.Path, seconds: float
) -> list[str]:
    """A command with its folders and its time."""
    values = {
        "{out}": str(out),
        "{scratch}": str(scratch),
        "{seconds}": f"{seconds:.0f}",
        "{minutes}": f"{seconds / 60:.2f}",
    }
    found = []
    for word in command:
        for place, value in values.items():
            word = word.replace(place, value)
        found.append(word)
    return found
