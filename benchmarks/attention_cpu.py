"""The attention benchmark on a CPU: the shapes of a recipe in float32, and the memory of the compiled gradient."""

import functools
import json
import os
import pathlib
import pickle
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence

import attention_jax
import attention_recipe
import attention_shape
import jax
import jax.numpy as jnp
import numpy as np
from attention_cases import Case
from attention_timing import Clock, Measured
from processor import processor

OURS = ("default", "xla", "xla_chunked")
OPPONENTS = ("jax_nn", "torch_sdpa")
DIRECTIONS = ("forward", "gradient")
BOUNDS = dict.fromkeys(("out", "dq", "dk", "dv"), 1e-5)  # relative, float32
LENGTHS = (4096, 8192, 16384)  # of the compiled gradients


class Worker:
    """The process of `attention_torch_worker.py`; `prepared` gives what `attention_jax.Prepared` gives."""

    def __init__(self, python: str, folder: pathlib.Path):
        script = pathlib.Path(__file__).with_name("attention_torch_worker.py")
        environment = os.environ | {"OMP_NUM_THREADS": str(os.cpu_count())}
        self.process = subprocess.Popen(
            [python, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        first = self.process.stdout.readline()
        if not first.startswith("ready"):
            raise RuntimeError(f"{python} ended before it was ready")
        self.versions = json.loads(first.removeprefix("ready"))
        self.folder = folder

    def ask(self, **job) -> dict:
        print(json.dumps(job), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker of PyTorch ended with {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def prepared(self, name: str, case: Case) -> "TorchPrepared":
        path = self.folder / "case.pickle"
        path.write_bytes(pickle.dumps(case))
        return TorchPrepared(self, self.ask(do="open", path=str(path), name=name)["remark"])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class TorchPrepared:
    """The shape that the worker has open; there is one at a time."""

    def __init__(self, worker: Worker, remark: str):
        self.worker, self.remark = worker, remark

    def measured(self, direction: str) -> Measured:
        calls = self.worker.ask(do="measure", direction=direction, number=1)["calls"]
        return Measured(
            lambda number: self.worker.ask(do="measure", direction=direction, number=number)[
                "seconds"
            ],
            calls,
        )

    def piece(self, row: int, kv_head: int) -> dict[str, np.ndarray]:
        path = self.worker.folder / "piece.npz"
        self.worker.ask(do="piece", row=row, kv_head=kv_head, path=str(path))
        with np.load(path) as arrays:
            return dict(arrays)


def run(record: dict, options, say: Callable[[str], None], save: Callable[[], None]) -> None:
    """Fills the record, shape by shape. Options: those of `attention.py`."""
    python = options.torch_python if pathlib.Path(options.torch_python).exists() else None
    names = options.implementations or [
        name for name in (*OURS, *OPPONENTS) if python or name != "torch_sdpa"
    ]
    if python is None:
        say(f"PyTorch is skipped: there is no {options.torch_python} (make oracle)")
        names = [name for name in names if not name.startswith("torch")]
    record |= {
        "device": processor(),
        "ours": list(OURS),
        "directions": options.directions or list(DIRECTIONS),
        "cases": [],
    }
    cases = [
        case
        for case in attention_recipe.cases(options.config)
        if not options.shapes or case.name in options.shapes
    ]
    clock = Clock(60 * options.minutes)
    with tempfile.TemporaryDirectory() as folder:
        worker = (
            Worker(python, pathlib.Path(folder))
            if any(name.startswith("torch") for name in names)
            else None
        )
        record["versions"] |= worker.versions if worker else {}
        for number, case in enumerate(cases):
            clock.begin(len(cases) - number)
            begun = time.monotonic()
            measured = attention_shape.measure(
                case,
                makers(case, names, worker),
                record["directions"],
                clock,
                rounds=options.rounds,
                target=options.sample,
                bounds=BOUNDS,
            )
            record["cases"].append({"case": case, "directions": measured})
            save()
            say(f"{case.name}: {time.monotonic() - begun:.0f} s")
        if worker:
            worker.close()
    if not options.shapes and (inside := [name for name in names if not name.startswith("torch")]):
        record["memory"] = memory(inside, cases[-2])
        save()


def makers(
    case: Case, names: Sequence[str], worker: Worker | None
) -> dict[str, Callable[[], attention_shape.Prepared]]:
    """How each implementation is prepared; those of jax share their inputs, which are made when the first one needs them."""
    sets = functools.cache(lambda: attention_jax.inputs(case, 1, jnp.float32))

    def prepared(name: str) -> attention_shape.Prepared:
        if name.startswith("torch"):
            assert worker is not None
            return worker.prepared(name, case)
        return attention_jax.Prepared(name, case, sets(), 1)

    return {name: functools.partial(prepared, name) for name in names}


def memory(
    names: Sequence[str], case: Case, lengths: Sequence[int] = LENGTHS
) -> dict[str, dict[str, int]]:
    """Bytes of temporaries of the compiled gradient, causal, one row of the heads of `case`: {name: {length: bytes}}. Nothing is run."""
    import dataclasses

    found: dict[str, dict[str, int]] = {name: {} for name in names}
    for length in lengths:
        longer = dataclasses.replace(
            case,
            batch=1,
            rows=length,
            keys=length,
            form="causal",
            segments=None,
            prefixes=None,
            blocks=None,
        )
        shape = jax.ShapeDtypeStruct((1, length, case.heads, case.head_dim), jnp.float32)
        keys = jax.ShapeDtypeStruct((1, length, case.kv_heads, case.head_dim), jnp.float32)
        for name in names:
            attend, mask, _ = attention_jax.make(name, longer)

            def gradient(q, k, v, dout, mask, attend=attend):
                return jax.vjp(lambda *x: attend(*x, mask), q, k, v)[1](dout)

            compiled = jax.jit(gradient).lower(shape, keys, keys, shape, mask).compile()
            found[name][str(length)] = compiled.memory_analysis().temp_size_in_bytes
    return found
