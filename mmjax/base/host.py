"""The process that jax runs in: what is set before jax starts, and what is done about memory once a program is compiled.

Call `prepare` before the first import of jax: it says where compiled programs are kept, how memory is given back and how much is logged.
Call `after_compilation` when a large program has been compiled. This module imports nothing but the standard library.

Memory is a matter of glibc's malloc. XLA:CPU allocates the temporaries of a step, and the packed operands of every matrix product, with
malloc, and frees them; so freed memory is kept, and the holes that a compilation leaves are put out of use. Elsewhere than on Linux with
glibc nothing happens here: a run is then slower and otherwise the same.
"""

import ctypes
import functools
import os
import pathlib
import sys

CACHE_VARIABLE = "MMJAX_CACHE_DIR"
# Under /dev: NVIDIA, TPU (two generations of drivers), AMD.
ACCELERATORS = ("nvidiactl", "accel0", "vfio/0", "kfd")


def prepare() -> None:
    """Prepares this process. What the user's environment already says stays as it is."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir() / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    # XLA's remarks that no user can act on; errors stay.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    if computes_on_cpu():
        keep_freed_memory()


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


# Option numbers of malloc.h. By default glibc hands freed pages back to the kernel, and every step faults them in again (measured: 200,000
# faults, 0.2 s of a 1.5 s step). One arena, because no other can hold more than 64 MiB in a piece.
_MALLOPT = {
    "arena_max": (-8, 1),
    "mmap_threshold": (-3, 2**31 - 1),
    "trim_threshold": (-1, -1),
    "mmap_max": (-4, 0),
}
# Bytes; malloc finds smaller holes without looking through lists.
_LARGEST_HOLE, _SMALLEST_HOLE = 64 * 2**20, 1024

_kept = False  # whether freed memory is kept


class _MallocInfo(ctypes.Structure):
    """struct mallinfo2 of malloc.h."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


@functools.cache
def _libc() -> ctypes.CDLL | None:
    """The C library with the types of what is called here; None if it is none of GNU."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return None
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes, libc.sbrk.restype = [ctypes.c_void_p], ctypes.c_void_p
    if hasattr(libc, "mallinfo2"):  # since glibc 2.33
        libc.mallinfo2.restype = _MallocInfo
    return libc


def keep_freed_memory() -> bool:
    """Makes malloc keep freed memory for the next step: one arena, nothing mapped apart, nothing trimmed. Returns whether it was done."""
    global _kept
    libc = _libc()
    _kept = libc is not None and sum(
        libc.mallopt(option, value) for option, value in _MALLOPT.values()
    ) == len(_MALLOPT)
    return _kept


def after_compilation() -> int:
    """To be called when a large program has been compiled: what the compiler left in this process must not slow the program down.

    A compiler frees tens of thousands of pieces between others that live on. malloc looks through these holes for every buffer, under a
    lock that all threads share: steps took up to 1.3 times as long in a process that had compiled them as in one that had read them from
    the cache. So the pages of the holes are given back to the kernel, and then the holes are allocated for good: they cost address space
    and no memory. Where `keep_freed_memory` was not done, nothing happens.

    Returns:
        The bytes of the holes that were put out of use.
    """
    libc = _libc()
    if libc is None or not _kept or not hasattr(libc, "mallinfo2"):
        return 0
    libc.malloc_trim(0)
    # What malloc gives from here on lies behind every hole.
    top = libc.sbrk(0) - libc.mallinfo2().keepcost
    size, found = _LARGEST_HOLE, 0
    while size >= _SMALLEST_HOLE:
        while (piece := libc.malloc(size)) and piece < top:
            found += size
        libc.free(piece)
        size = size * 7 // 8
    return found
