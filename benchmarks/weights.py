"""Loading and converting weights, beside safetensors and transformers, on this machine's CPU.

    python benchmarks/weights.py --torch_python .oracle/bin/python [--rounds 7] [--fresh 3] [--gguf FILE] [--only load|convert]
        [--case NAME] [--out benchmarks/results/NAME.md]

Files are in the page cache. `safetensors.torch.load_file` and transformers' `from_pretrained` map the file and have read nothing when they
return; so each of their figures includes what makes them read it: `touched` sums every tensor, and the numbers stay pages of the file;
`copied` clones every tensor, and the numbers are in memory of their own, as they are after `load_pretrained`, which also turns matrices,
stacks layers and looks for numbers that are not finite.

One worker process for each side, both alive, taking turns: a round is one job of each. Figures are medians over rounds after the first, and
ratios are taken round by round. `first` is the first load of a fresh process, after its imports: memory is new, traces are not made.
"""

import argparse
import gc
import io
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
OTHER_METHODS = (
    "load_file, touched",
    "load_file, copied",
    "from_pretrained, touched",
    "from_pretrained, copied",
)
MODEL = {"width": 1024, "mlp": 2816, "layers": 16, "vocabulary": 32_000, "heads": 16, "kv_heads": 4}


def write_model(folder: pathlib.Path, dtype: str) -> None:
    """A Llama of random numbers: 1.0 GB in float32."""
    import numpy as np

    from mmjax.models import parameters
    from mmjax.models.config import DecoderConfig, LanguageModelConfig
    from mmjax.weights.save import save_params

    head_dim = MODEL["width"] // MODEL["heads"]
    names = {"vocabulary", "width", "layers", "heads", "kv_heads"}
    decoder = DecoderConfig(
        **{name: MODEL[name] for name in names}, head_dim=head_dim, mlp_width=MODEL["mlp"]
    )
    config = LanguageModelConfig(decoder, compute_dtype="float32")
    random = np.random.default_rng(0)
    shapes = parameters.abstract(config)[1]
    params = {
        path: 0.02 * random.standard_normal(shape.shape, np.float32)
        for path, shape in shapes.items()
    }
    save_params(params, config, folder, dtype=dtype)


def serve() -> None:
    """The worker of mmjax."""
    from mmjax.base import host

    host.prepare()
    import jax
    from rich.console import Console

    from mmjax.models import parameters
    from mmjax.port.port import port
    from mmjax.weights import load_pretrained

    jax.devices()
    print("ready", json.dumps({"jax": jax.__version__}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        begun = time.perf_counter()
        if job["method"] == "convert":
            port(job["path"], pathlib.Path(job["target"]), Console(file=io.StringIO()))
        else:
            module = load_pretrained(job["path"], dtype=job["dtype"])
            jax.block_until_ready(parameters.split(module)[1])
            del module
        seconds = time.perf_counter() - begun
        gc.collect()
        if job.get("remove"):
            shutil.rmtree(job["target"])
        print(json.dumps(seconds), flush=True)


class Worker:
    """A process that answers jobs with seconds."""

    def __init__(self, command: list[str]):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(os.cpu_count())}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        first = self.process.stdout.readline()
        if not first.startswith("ready"):
            raise RuntimeError(f"{command} ended before it was ready")
        self.versions = json.loads(first.removeprefix("ready"))

    def run(self, **job) -> float:
        print(json.dumps(job), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def warm(path: pathlib.Path) -> int:
    """Reads a file, or those of a folder, into the page cache. Returns the bytes of its weights."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass
    return sum(file.stat().st_size for file in files)


def compare(
    commands: dict[str, list[str]], case: dict, rounds: int, fresh: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every method: {"mmjax": {"rounds": [...], "first": [...]}, ...}."""
    methods = {"load_pretrained": "mmjax"} | dict.fromkeys(case["others"], "torch")
    seconds = {method: {"rounds": [], "first": []} for method in methods}
    for _ in range(fresh):
        for method, side in methods.items():
            warm(pathlib.Path(case["path"]))
            worker = Worker(commands[side])
            seconds[method]["first"].append(
                worker.run(method=method, path=case["path"], dtype=case["dtype"])
            )
            worker.close()
    workers = {side: Worker(command) for side, command in commands.items()}
    for number in range(rounds + 1):
        for method, side in methods.items():
            taken = workers[side].run(method=method, path=case["path"], dtype=case["dtype"])
            if number:
                seconds[method]["rounds"].append(taken)
    for worker in workers.values():
        worker.close()
    return seconds


def shown(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def load_table(case: dict, seconds: dict) -> list[str]:
    lines = []
    own_seconds = seconds["load_pretrained"]
    for method, found in seconds.items():
        ratios, firsts = (
            [other / own for own, other in zip(own_seconds[key], found[key], strict=True)]
            if found[key]
            else []
            for key in ("rounds", "first")
        )
        rate = case["bytes"] / 1e9 / statistics.median(found["rounds"])
        first = f"{shown(found['first'])} | {shown(firsts)}" if firsts else "- | -"
        lines.append(
            f"| {case['name']} | {method} | {shown(found['rounds'])} | {rate:.2f} | {shown(ratios)} | {first} |"
        )
    return lines


def conversions(
    commands: dict[str, list[str]],
    cases: list[tuple[str, str, str]],
    folder: pathlib.Path,
    rounds: int,
) -> list[str]:
    """Seconds of `python -m mmjax.port`, without its imports; and of transformers' way from a folder to a folder."""
    workers = {side: Worker(command) for side, command in commands.items()}
    seconds: dict[str, list[float]] = {name: [] for name, *_ in cases}
    for number in range(rounds + 1):
        for name, side, path in cases:
            target = str(folder / "converted")
            taken = workers[side].run(
                method="convert", path=path, dtype="float32", target=target, remove=True
            )
            if number:
                seconds[name].append(taken)
    for worker in workers.values():
        worker.close()
    sizes = {name: warm(pathlib.Path(path)) for name, _, path in cases}
    return [
        f"| {name} | {shown(found)} | {sizes[name] / 1e9 / statistics.median(found):.2f} |"
        for name, found in seconds.items()
    ]


def head(versions: dict, options: argparse.Namespace) -> list[str]:
    lines = (
        pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        if pathlib.Path("/proc/cpuinfo").exists()
        else []
    )
    processor = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    given = f"--rounds {options.rounds} --fresh {options.fresh}" + (
        " --gguf FILE" if options.gguf else ""
    )
    command = f"python benchmarks/weights.py {given}" + (
        f" --only {options.only}" if options.only else ""
    )
    return [
        "# Loading and converting weights",
        "",
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores of {processor}, {platform.system()}; load averages at the end {load}.",
        ", ".join(f"{name} {version}" for name, version in versions.items())
        + f", Python {platform.python_version()}.",
        "",
        f"    {command}",
        "",
        *(__doc__ or "").split("\n\n", 2)[2].strip().splitlines(),
        "",
    ]


def ported(source: str, target: pathlib.Path, to: str) -> str:
    command = [sys.executable, "-m", "mmjax.port", source, str(target), f"--to={to}"]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return str(target)


def loading(
    commands: dict[str, list[str]], options: argparse.Namespace, folder: pathlib.Path
) -> list[str]:
    cases = []
    for dtype in ("float32", "bfloat16"):
        write_model(folder / dtype, dtype)
        cases.append(
            {
                "name": f"Llama, {dtype}",
                "path": str(folder / dtype),
                "dtype": dtype,
                "others": OTHER_METHODS,
            }
        )
    if options.gguf:
        smol = ported(options.gguf, folder / "smol", "huggingface")
        cases.append(
            {
                "name": "SmolLM2-135M, float32",
                "path": smol,
                "dtype": "float32",
                "others": OTHER_METHODS,
            }
        )
        gguf = {
            "name": "SmolLM2-135M, GGUF Q4_1",
            "path": options.gguf,
            "dtype": "float32",
            "others": ("from_pretrained, touched",),
        }
        cases.append(gguf)
    lines = [
        "| weights | method | seconds: median (min-max) | GB/s | times mmjax's seconds | first: seconds | first: times mmjax's |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        if options.case in case["name"]:
            case["bytes"] = warm(pathlib.Path(case["path"]))
            lines += load_table(case, compare(commands, case, options.rounds, options.fresh))
            print("\n".join(lines[-len(case["others"]) - 1 :]), flush=True)
    return lines


def converting(
    commands: dict[str, list[str]], options: argparse.Namespace, folder: pathlib.Path
) -> list[str]:
    write_model(folder / "float32", "float32")
    orbax = ported(str(folder / "float32"), folder / "orbax", "orbax")
    cases = [
        ("folder of Hugging Face to Orbax", "mmjax", str(folder / "float32")),
        ("Orbax to folder of Hugging Face", "mmjax", orbax),
        ("transformers: folder to folder", "torch", str(folder / "float32")),
    ]
    if options.gguf:
        cases.append(("SmolLM2-135M, GGUF Q4_1 to Orbax", "mmjax", options.gguf))
    lines = ["| conversion | seconds: median (min-max) | GB/s of the source |", "|---|---|---|"]
    lines += conversions(commands, cases, folder, options.rounds)
    print("\n".join(lines[2:]), flush=True)
    return lines


def measure(options: argparse.Namespace, folder: pathlib.Path) -> list[str]:
    commands = {
        "mmjax": [sys.executable, __file__, "serve"],
        "torch": [options.torch_python, str(ROOT / "benchmarks" / "weights_worker.py")],
    }
    lines: list[str] = []
    for name, part in (("load", loading), ("convert", converting)):
        if options.only in (None, name):
            inner = folder / name
            inner.mkdir()
            lines += [*part(commands, options, inner), ""]
            shutil.rmtree(inner)
    workers = [Worker(command) for command in commands.values()]
    versions = {name: version for worker in workers for name, version in worker.versions.items()}
    for worker in workers:
        worker.close()
    return [*head(versions, options), *lines]


def main() -> None:
    if sys.argv[1:] == ["serve"]:
        return serve()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--torch_python", default=os.environ.get("MMJAX_ORACLE", ".oracle/bin/python")
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--fresh", type=int, default=3)
    parser.add_argument(
        "--gguf",
        help="SmolLM2-135M-Instruct.Q4_1.gguf, as `python -m mmjax.fetch smollm2` brings it",
    )
    parser.add_argument("--only", choices=("load", "convert"))
    parser.add_argument("--case", default="", help="load only what has this in its name")
    parser.add_argument("--out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        text = "\n".join(measure(options, pathlib.Path(name)))
    print(text)
    if options.out:
        pathlib.Path(options.out).write_text(text + "\n")
    return None


if __name__ == "__main__":
    main()
