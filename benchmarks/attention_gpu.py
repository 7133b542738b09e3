"""The attention benchmark on a GPU: ceilings, a correctness gate, then every shape."""

import functools
import importlib.util
import math
import os
import subprocess
import threading
import time
from collections.abc import Callable

import attention_gate
import attention_jax
import attention_shape
import jax
import jax.numpy as jnp
from attention_cases import Case, gpu_cases
from attention_timing import Clock, Measured, dispatches, quartiles

OURS = ("mosaic_gpu", "mosaic_gpu_fused")
OPPONENTS = ("cudnn", "torch_cudnn", "torch_flash", "torch_flex", "xla", "tokamax")
OPTIONAL = ("xla_chunked",)
DIRECTIONS = ("forward", "backward")
SECOND_CACHE = 60e6  # bytes of L2 on an H200
MOST_SETS = 16
DISPATCH = 1e-4  # seconds of work, at the least, that hide what a dispatch costs the host
PATIENCE = 240.0  # seconds without a sign of life


def available(names: tuple[str, ...] = (*OURS, *OPPONENTS)) -> list[str]:
    """Those of the names whose packages are here."""
    here = {
        "torch": importlib.util.find_spec("torch") is not None,
        "tokamax": attention_jax.has_tokamax(),
    }
    return [name for name in names if here.get(name.split("_")[0], True)]


def rotation(case: Case) -> tuple[int, int]:
    """(sets of inputs, calls in a dispatch): sets of four times the second-level cache, dispatches that outlast what they cost the host."""
    sets = min(max(2, math.ceil(4 * SECOND_CACHE / case.bytes("forward"))), MOST_SETS)
    calls = min(math.ceil(DISPATCH / case.least_seconds("forward")), MOST_SETS)
    return math.ceil(sets / calls) * calls, calls


def ceilings(
    size: int = 8192, copied: int = 2**32, rounds: int = 7, target: float = 0.05
) -> dict[str, float]:
    """{"flops": of a bfloat16 product of square matrices, "bandwidth": bytes read and written by a copy}, per second, medians."""

    def rate(program: Callable, arguments: tuple, work: float) -> float:
        def run(number: int) -> float:
            begun = time.perf_counter()
            for _ in range(number):
                out = program(*arguments)
            jax.block_until_ready(out)
            return time.perf_counter() - begun

        number = dispatches(Measured(run), target)
        return work * number / quartiles([run(number) for _ in range(rounds)])[1]

    left, right = (
        jax.random.normal(jax.random.key(seed), (size, size), jnp.bfloat16) for seed in range(2)
    )
    values = jax.random.bits(jax.random.key(2), (copied // 4,), jnp.uint32)
    product = rate(jax.jit(jnp.matmul), (left, right), 2.0 * size**3)
    # Every bit is inverted, so that it is a kernel and no copy that the compiler could remove.
    return {"flops": product, "bandwidth": rate(jax.jit(jnp.invert), (values,), 2.0 * copied)}


class Watch:
    """Ends the process when nothing happens any more: a kernel that waits for itself cannot be interrupted otherwise.

    Args:
        last: called before, with what was going on.
    """

    def __init__(self, last: Callable[[str], None], patience: float = PATIENCE):
        self.last, self.patience = last, patience
        self.doing, self.since = "starting", time.monotonic()
        threading.Thread(target=self._look, daemon=True).start()

    def beat(self, doing: str) -> None:
        self.doing, self.since = doing, time.monotonic()

    def _look(self) -> None:
        while True:
            time.sleep(1)
            if time.monotonic() - self.since > self.patience:
                self.last(self.doing)
                os._exit(4)


def run(record: dict, options, say: Callable[[str], None], save: Callable[[], None]) -> None:
    """Fills the record, shape by shape. Options: those of `attention.py`."""
    began = time.monotonic()
    names = options.implementations or available()
    ours = [name for name in names if name in OURS]
    # Before this process takes its share of the memory: the gate needs some, too.
    record["gate"] = {name: attention_gate.passes(name, say) for name in ours}
    names = [name for name in names if name not in ours or record["gate"][name]["passed"]]
    record |= {
        "device": device(),
        "ours": [*ours, *OPTIONAL],
        "directions": options.directions or list(DIRECTIONS),
    }

    def hang(doing: str) -> None:
        record["ended"] = f"nothing happened for {PATIENCE:.0f} s at {doing}"
        save()
        say(f"ENDED: {record['ended']}")

    watch = Watch(hang)
    watch.beat("ceilings")
    record["ceilings"] = ceilings() if options.shrink == 1 else ceilings(256, 2**20, 2, 0.01)
    say(
        f"ceilings: {record['ceilings']['flops'] / 1e12:.0f} TFLOP/s, {record['ceilings']['bandwidth'] / 1e12:.2f} TB/s"
    )
    cases = [
        case
        for case in gpu_cases(options.shrink)
        if not options.shapes or case.name in options.shapes
    ]
    clock = Clock(60 * options.minutes - (time.monotonic() - began))
    record["cases"] = []
    for number, case in enumerate(cases):
        clock.begin(len(cases) - number)
        entry = {"case": case, "directions": {}}
        record["cases"].append(entry)
        sets, calls = rotation(case) if options.shrink == 1 else (4, 2)
        entry["directions"] = attention_shape.measure(
            case, makers(case, names, sets, calls), record["directions"], clock, rounds=options.rounds, target=options.sample,
            bounds=attention_gate.BOUNDS, beat=watch.beat,
        )  # fmt: skip
        release()
        save()
        say(f"{case.name}: {time.monotonic() - began:.0f} s")


def makers(
    case: Case, names: list[str], sets: int, calls: int
) -> dict[str, Callable[[], attention_shape.Prepared]]:
    """How each implementation is prepared. Those of a framework share their inputs, which are made when the first one needs them.

    Args:
        sets, calls: as `rotation` gives them.
    """
    ours = functools.cache(lambda: attention_jax.inputs(case, sets, jnp.bfloat16))

    @functools.cache
    def theirs() -> tuple:
        import attention_torch
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        attention_torch.prepare(float(os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"]))
        return attention_torch, attention_torch.inputs(case, sets, device, torch.bfloat16), device

    def maker(name: str) -> attention_shape.Prepared:
        if name.startswith("torch"):
            module, inputs, device = theirs()
            return module.Prepared(name, case, inputs, device)
        return attention_jax.Prepared(name, case, ours(), calls)

    return {name: functools.partial(maker, name) for name in names}


def release() -> None:
    """Memory of the last shape, for the next."""
    import gc

    jax.clear_caches()
    gc.collect()
    if importlib.util.find_spec("torch"):
        import torch

        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def device() -> str:
    """Name, compute capability and driver."""
    found = jax.devices()[0]
    words = [
        found.device_kind,
        f"compute capability {getattr(found, 'compute_capability', 'unknown')}",
    ]
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        words.append(
            "driver "
            + subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
        )
    except (OSError, subprocess.CalledProcessError, IndexError):
        words.append("driver unknown")
    return ", ".join(words)
