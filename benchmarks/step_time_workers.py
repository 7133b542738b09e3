"""The processes of both sides: started, asked, and ended when they take too long."""

import contextlib
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
MEMORY_SHARE = 0.48  # of a GPU for each side
LONGEST_END = 20.0  # seconds that a process has to end by itself
OURS, TORCH = "mmjax", ("eager", "compile", "max-autotune")
LABELS = {
    OURS: "mmjax",
    "eager": "torch eager",
    "compile": "torch.compile",
    "max-autotune": "torch.compile max-autotune",
}


class WorkerError(Exception):
    """A worker could not do what it was asked for; the message is what it said."""


class Worker:
    """A process that answers lines of JSON. After TimeoutError it is gone."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        # Ctrl-C is for the benchmark alone.
        self.process = subprocess.Popen(
            command, **pipes, text=True, env=environment, process_group=0
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.versions: dict[str, str] | None = None

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def send(self, **job: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer says that it has ended
            print(json.dumps(job), file=self.process.stdin, flush=True)

    def receive(self, seconds: float) -> dict[str, Any]:
        """The answer to the oldest job.

        Raises:
            TimeoutError: none came within `seconds`. WorkerError: the job failed, or the process has ended.
        """
        end = time.monotonic() + seconds
        if self.versions is None:
            self.versions = json.loads(self._line(end).removeprefix("ready"))
        answer = json.loads(self._line(end))
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _line(self, end: float) -> str:
        while True:
            try:
                line = self.lines.get(timeout=max(end - time.monotonic(), 0.01))
            except queue.Empty:
                self.kill()
                raise TimeoutError("the time was up") from None
            if not line:
                raise WorkerError(f"the process ended with {self.process.wait()}")
            if line.startswith(("{", "ready")):  # libraries print, too
                return line

    def ask(self, seconds: float, **job: Any) -> dict[str, Any]:
        self.send(**job)
        return self.receive(seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(LONGEST_END)
        except subprocess.TimeoutExpired:
            self.kill()


def start_ours(folder: pathlib.Path, environment: dict[str, str]) -> Worker:
    memory = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": str(MEMORY_SHARE),
    }
    return Worker(
        [sys.executable, str(HERE / "step_time_jax.py"), str(folder)], environment | memory
    )


def start_torch(
    python: str, folder: pathlib.Path, device: str, environment: dict[str, str]
) -> Worker:
    path = os.pathsep.join(filter(None, (str(HERE), environment.get("PYTHONPATH", ""))))
    own = {
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",  # compilations are timed
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }
    return Worker([python, "-m", "torch_baseline.worker", str(folder), device], environment | own)


def find_torch(named: str | None) -> str | None:
    """An interpreter with torch and transformers: the named one, $MMJAX_ORACLE, .oracle, or this one; None where none of them has both."""
    local = HERE.parent / ".oracle" / "bin" / "python"
    candidates = [named] if named else [os.environ.get("MMJAX_ORACLE"), str(local), sys.executable]
    return next((python for python in candidates if python and has_torch(python)), None)


def has_torch(python: str) -> bool:
    """Whether it is an interpreter that finds both packages. They are not imported, which takes seconds."""
    question = "import importlib.util as u, sys; sys.exit(not (u.find_spec('torch') and u.find_spec('transformers')))"
    try:
        return (
            subprocess.run([python, "-c", question], capture_output=True, timeout=60).returncode
            == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
