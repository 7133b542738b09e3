"""glibc's malloc, in a process of its own: what it does is seen in the kernel's figures for the process."""

import pathlib
import subprocess
import sys

import pytest

from mmjax.base import host

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not hasattr(host._libc(), "mallinfo2"), reason="another malloc than that of glibc 2.33 or newer"
)

HOLES = """
import ctypes, sys
from mmjax.base import host

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def free():
    info = host._libc().mallinfo2()
    return info.fordblks - info.keepcost

libc = host._libc()
if {kept}:
    assert host.keep_freed_memory()
pieces = [libc.malloc(16384) for _ in range(8192)]  # 128 MiB
for piece in pieces:
    ctypes.memset(piece, 1, 16384)
for piece in pieces[::2]:  # every other one lives on
    libc.free(piece)
before = resident(), free()
aside = host.after_compilation()
again = host.after_compilation()
piece = libc.malloc(16384)
untouched = all(ctypes.string_at(one, 1) == b"\\1" for one in pieces[1::2])
print(before[0] - resident(), before[1], free(), aside, again, piece > pieces[-1], untouched)
"""


def run(script: str) -> list[str]:
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()


def test_holes_are_set_aside_and_their_memory_is_given_back():
    given_back, free_before, free_after, aside, again, behind, untouched = run(
        HOLES.format(kept=True)
    )
    assert int(free_before) >= 64 * 2**20
    assert int(aside) >= 60 * 2**20
    assert int(free_after) < 2 * 2**20
    assert int(given_back) > 40 * 2**20  # of every hole the pages that it has for itself
    assert int(again) < 2 * 2**20
    assert behind == "True", "the next piece lies behind all holes"
    assert untouched == "True"


def test_nothing_is_set_aside_where_freed_memory_is_not_kept():
    *_, aside, again, _, _ = run(HOLES.format(kept=False))
    assert (aside, again) == ("0", "0")


def test_freed_memory_is_kept():
    script = "from mmjax.base import host; print(host.keep_freed_memory())"
    assert run(script) == ["True"]
