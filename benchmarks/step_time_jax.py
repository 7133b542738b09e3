"""mmjax's side of `step_time.py` as a process of its own: python step_time_jax.py FOLDER

The step is that of `python -m mmjax.main`. Protocol: that of torch_baseline/worker.py, with the one variant "mmjax"; the answer to "first"
also has what was seen of the device: {"device", "peak_flops"}.
"""

import functools
import json
import pathlib
import pickle
import platform
import resource
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmjax.base import host  # noqa: E402

host.prepare()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from mmjax.kernels.attention import prefer  # noqa: E402
from mmjax.models import parameters  # noqa: E402
from mmjax.recipe.recipe import Stage  # noqa: E402
from mmjax.training import state as training_state  # noqa: E402
from mmjax.training.flops import peak_flops  # noqa: E402
from mmjax.training.state import logical_rank  # noqa: E402
from mmjax.training.step import make_train_step, one_at_a_time  # noqa: E402
from mmjax.typing import Array, Batch  # noqa: E402

STD = 0.02


def draw(stage: Stage) -> dict[str, Array]:
    """Parameters, each drawn in the dtype in which the stage stores it: no float32 copy of a frozen model is ever made."""
    found = {}
    for number, (path, leaf) in enumerate(sorted(parameters.abstract(stage.model)[1].items())):
        frozen = not parameters.matches(path, stage.trainable) and logical_rank(path, leaf) >= 2
        dtype = jnp.dtype(stage.model.compute_dtype if frozen else "float32")
        if path.endswith(("/scale", "/bias", "/lora_b")):
            found[path] = jnp.full(leaf.shape, float(path.endswith("/scale")), dtype)
        else:
            found[path] = _normal(jax.random.key(number), leaf.shape, dtype)
    return found


@functools.partial(jax.jit, static_argnums=(1, 2))
def _normal(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    return jax.random.normal(key, shape, dtype) * jnp.asarray(STD, dtype)


def measured_flops(size: int = 1024, budget: float = 0.2) -> float:
    """FLOP/s of a float32 matrix product on the CPU, of the best of those that fit into `budget` seconds: the workers take turns, so that
    nothing else runs meanwhile, and the table has the highest of all shapes."""
    square, product = jnp.ones((size, size), jnp.float32), jax.jit(jnp.matmul)
    product(square, square).block_until_ready()
    best, end = float("inf"), time.perf_counter() + budget
    while time.perf_counter() < end:
        start = time.perf_counter()
        product(square, square).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


class Job:
    """One shape: its state, its batches and its compiled step."""

    def __init__(self, folder: pathlib.Path):
        self.stage, self.attention = pickle.loads((folder / "stage.pickle").read_bytes())
        if (folder / "parameters.npz").exists():
            with np.load(folder / "parameters.npz") as arrays:
                params = {path: jnp.asarray(value) for path, value in arrays.items()}
        else:
            params = draw(self.stage)
        self.state = training_state.create(params, self.stage, jax.random.key(0))
        with np.load(folder / "jax_batches.npz") as file:
            fields = dict(file)
        self.batches = [
            Batch(**{name: value[number] for name, value in fields.items()})
            for number in range(len(fields["tokens"]))
        ]
        self.taken = 0
        self.step = make_train_step(parameters.abstract(self.stage.model)[0], self.stage)

    def steps(self, count: int) -> list:
        found = []
        with prefer(self.attention):
            for _ in range(count):
                self.state, metrics = self.step(
                    self.state, self.batches[self.taken % len(self.batches)]
                )
                found.append((metrics.loss, metrics.gradient_norm))
                self.taken += 1
                if one_at_a_time():  # as in the training loop
                    jax.block_until_ready(self.state)
        return found

    def first(self, variant: str, steps: int) -> dict:
        results, seconds = [], []
        for _ in range(steps):
            begun = time.perf_counter()
            results += self.steps(1)
            jax.block_until_ready((self.state, results))
            seconds.append(time.perf_counter() - begun)
            if len(seconds) == 1:
                host.after_compilation()  # as the training loop does
        losses, norms = (
            [float(value.compute()) for value in values] for values in zip(*results, strict=True)
        )
        device = jax.devices()[0]
        kind = "cpu" if device.platform == "cpu" else device.device_kind
        peak = measured_flops() if kind == "cpu" else peak_flops(device)
        seen = {"device": kind, "peak_flops": peak}
        remark = f"attention: {self.attention}" if self.attention else ""
        return {"losses": losses, "norms": norms, "seconds": seconds, "remark": remark, **seen}

    def run(self, variant: str, steps: int) -> dict:
        begun = time.perf_counter()
        results = self.steps(steps)
        jax.block_until_ready((self.state, results))
        seconds = (time.perf_counter() - begun) / steps
        assert all(jnp.isfinite(loss.compute()) for loss, _ in results), "the loss is not finite"
        return {"seconds": seconds, "memory": self.peak()}

    def peak(self) -> int:
        device = jax.devices()[0]
        if device.platform == "cpu":
            return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return device.memory_stats()["peak_bytes_in_use"]


def main(folder: str) -> None:
    jax.config.update("jax_enable_compilation_cache", False)  # compilations are timed
    print(
        "ready",
        json.dumps({"jax": jax.__version__, "python": platform.python_version()}),
        flush=True,
    )
    job = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            job = job or Job(pathlib.Path(folder))
            answer = (
                job.run(asked["variant"], asked["steps"])
                if asked["do"] == "run"
                else job.first(asked["variant"], asked["steps"])
            )
        except Exception as error:  # the benchmark says it in its table
            first = (str(error).strip().splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {first[:300]}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
