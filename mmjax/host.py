"""What has to happen to the process before jax starts: where compiled programs are kept, how memory is given back, how much is logged.

Call `prepare` before the first import of jax. It imports nothing but what the standard library has.
"""

import os
import pathlib

from mmjax import heap

CACHE_VARIABLE = "MMJAX_CACHE_DIR"
ACCELERATORS = ("nvidiactl", "accel0", "vfio/0", "kfd")  # under /dev: NVIDIA, TPU (two generations of drivers), AMD


def prepare() -> None:
    """Prepares this process. What the user's environment already says stays as it is."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir() / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's remarks that no user can act on; errors stay
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    if computes_on_cpu():
        heap.keep_freed_memory()


def cache_dir() -> pathlib.Path:
    """Where mmjax keeps what can be made again: $MMJAX_CACHE_DIR, or mmjax in the user's cache folder."""
    if named := os.environ.get(CACHE_VARIABLE):
        return pathlib.Path(named).expanduser()
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mmjax"


def computes_on_cpu() -> bool:
    """Whether jax will compute on this host's CPU, as far as can be told without starting it."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms.split(",")[0] == "cpu"
    return not any(pathlib.Path("/dev", name).exists() for name in ACCELERATORS)
