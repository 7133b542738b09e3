"""PyTorch's side of `step_time.py` as a process of its own: python -m torch_baseline.worker FOLDER DEVICE

Protocol: prints "ready" and its versions as JSON, then answers each line of JSON on standard input with one line:

    {"do": "first", "variant": NAME of blocks.VARIANTS, "steps": N}
        -> {"losses", "norms": of the first N steps, "seconds": of each, the compilation in the first, "remark": ..., "backends": ...}
    {"do": "run", "variant": NAME, "steps": N}     -> {"seconds": per step, "memory": peak bytes}
Whatever goes wrong is {"error": ...}. Variants train the same model, one after the other. Parameters are those of the folder, or, where it
has none, drawn here.
"""

import ctypes
import json
import os
import pathlib
import platform
import resource
import sys
import time

# The settings of mmjax/base/host.py: one arena, freed memory is kept.
ALLOCATOR = ((-8, 1), (-3, 2**31 - 1), (-1, -1), (-4, 0))
if sys.platform == "linux" and sys.argv[2:3] != ["cuda"]:
    for option, setting in ALLOCATOR:
        ctypes.CDLL(None).mallopt(option, setting)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from torch_baseline import attention, batches, weights  # noqa: E402
from torch_baseline.blocks import Ways, loss_function  # noqa: E402
from torch_baseline.model import Model  # noqa: E402
from torch_baseline.step import Trainer  # noqa: E402

MEMORY_SHARE = 0.48  # of the GPU: the other side has as much


class Job:
    """One shape: the model, its batches, and the variants that have been made."""

    def __init__(self, folder: pathlib.Path, device: str):
        spec = json.loads((folder / "spec.json").read_text())
        self.device, self.spec, self.taken = device, spec, 0
        self.dtype = getattr(torch, spec["model"]["compute_dtype"])
        torch.manual_seed(0)
        torch.set_default_dtype(self.dtype)
        with torch.device(device):
            self.model = Model(spec).train()
        torch.set_default_dtype(torch.float32)
        if (folder / "parameters.npz").exists():
            with np.load(folder / "parameters.npz") as arrays:
                weights.load(self.model, spec, dict(arrays))
        self.trainer = Trainer(self.model, spec, device)
        with np.load(folder / "torch_batches.npz") as file:
            fields = dict(file)
        given = (
            {name: value[number] for name, value in fields.items()}
            for number in range(len(fields["tokens"]))
        )
        self.batches = [batches.make(arrays, spec["head_positions"], device) for arrays in given]
        self.variants: dict = {}
        self.backends = self.pin() if device == "cuda" else {}

    def pin(self) -> dict[str, str]:
        """Chooses a backend for every kind of call of attention."""
        with attention.watched() as calls, torch.no_grad():
            self.model.loss(batches.to_device(self.batches[0], self.device), Ways("none"))
        return attention.choose(calls, self.dtype)

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def steps(self, variant: str, count: int) -> list:
        function, _ = self.variants[variant]
        found = []
        for _ in range(count):
            found.append(self.trainer.step(function, self.batches[self.taken % len(self.batches)]))
            self.taken += 1
        return found

    def first(self, variant: str, steps: int) -> dict:
        self.variants[variant] = loss_function(self.model, self.spec["model"]["remat"], variant)
        results, seconds = [], []
        for _ in range(steps):
            begun = time.perf_counter()
            results += self.steps(variant, 1)
            self.wait()
            seconds.append(time.perf_counter() - begun)
        losses, norms = ([float(value) for value in values] for values in zip(*results))  # noqa: B905 - pairs
        return {
            "losses": losses,
            "norms": norms,
            "seconds": seconds,
            "remark": self.variants[variant][1],
            "backends": self.backends,
        }

    def run(self, variant: str, steps: int) -> dict:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        results = self.steps(variant, steps)
        self.wait()
        seconds = (time.perf_counter() - begun) / steps
        assert all(torch.isfinite(loss) for loss, _ in results), "the loss is not finite"
        return {"seconds": seconds, "memory": self.peak()}

    def peak(self) -> int:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(folder: str, device: str) -> None:
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python of torch": platform.python_version(),
    }
    if device == "cuda":
        torch.cuda.set_per_process_memory_fraction(MEMORY_SHARE)
        # Float32 stays float32.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    elif hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    print("ready", json.dumps(versions), flush=True)
    job = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            job = job or Job(pathlib.Path(folder), device)
            answer = getattr(job, {"first": "first", "run": "run"}[asked["do"]])(
                asked["variant"], asked["steps"]
            )
        except Exception as error:  # the benchmark says it in its table
            first = (str(error).strip().splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {first[:300]}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
