"""Any slice of an array on disk, and nothing else of it."""

import os
import pathlib
import subprocess
import sys
from unittest import mock

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mmjax.errors import InputError
from mmjax.weights import tensors
from mmjax.weights.tensors import quoted, spell_out

OFFSET = 13


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[slice, ...]]:
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=4)))
    ends = st.none() | st.integers(-8, 8)
    return shape, tuple(
        slice(draw(ends), draw(ends)) for _ in shape[: draw(st.integers(0, len(shape)))]
    )


@hypothesis.given(
    cases(), st.sampled_from([(0, 1 << 20), (4, 1 << 20), (1 << 15, 1 << 20), (1 << 15, 30)])
)
@hypothesis.example(((4, 6, 6), (slice(0, 3), slice(1, 3))), (1 << 15, 30))
@hypothesis.settings(deadline=None, max_examples=200)
def test_a_slice_is_what_numpy_says(
    tmp_path_factory: pytest.TempPathFactory, case, sizes: tuple[int, int]
):
    """Under several limits of what is read together: nothing, a little, all, all but in small chunks."""
    shape, index = case
    array = np.random.default_rng(0).integers(0, 2**15, shape).astype(np.uint16)
    path = tmp_path_factory.getbasetemp() / "array"
    path.write_bytes(bytes(OFFSET) + array.tobytes())
    file = tensors.DiskFile(path)
    with mock.patch.multiple(tensors, _GAP=sizes[0], _CHUNK=sizes[1]):
        found = tensors.read_slice(file, OFFSET, shape, array.dtype, spell_out(index, shape))
    file.close()
    np.testing.assert_array_equal(found, array[index])
    assert found.dtype == array.dtype and found.flags.writeable


def test_bytes_that_are_not_wanted_are_not_read(tmp_path: pathlib.Path):
    shape = (8, 4, 100_000)
    with (tmp_path / "array").open("wb") as sparse:
        sparse.truncate(np.prod(shape))
    file = tensors.DiskFile(tmp_path / "array")
    with mock.patch.object(tensors.os, "preadv", wraps=tensors.os.preadv) as read:
        tensors.read_slice(file, 0, shape, np.dtype(np.uint8), ((2, 4), (1, 3), (50_000, 50_010)))
    assert sum(len(call.args[1][0]) for call in read.call_args_list) == 2 * 2 * 10
    file.close()


def test_a_step_or_too_many_axes_are_mistakes():
    for index in [(slice(None, None, 2),), (slice(None),) * 3]:
        with pytest.raises(AssertionError):
            spell_out(index, (4, 4))


def test_a_file_that_shrinks_is_noticed(tmp_path: pathlib.Path):
    path = tmp_path / "array"
    path.write_bytes(bytes(100))
    file = tensors.DiskFile(path)
    path.write_bytes(bytes(50))
    with pytest.raises(InputError, match="ends at byte 50"):
        file.read(0, 100)
    file.close()


@pytest.mark.parametrize(
    "make",
    [lambda path: path.mkdir(), lambda path: os.mkfifo(path), lambda path: None],
    ids=["folder", "pipe", "none"],
)
def test_what_is_no_file_is_refused(tmp_path: pathlib.Path, make):
    make(tmp_path / "thing")
    with pytest.raises(InputError, match="thing"):
        tensors.DiskFile(tmp_path / "thing")


def test_names_in_messages_are_short_and_printable():
    assert quoted("a.b") == "'a.b'"
    assert quoted("\x1b[31m\ud800").isprintable()
    assert len(quoted("x" * 10**6)) < 250


MEASURE = """
import pathlib, sys
import numpy as np
from mmjax.weights import tensors

def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024

path, shape = pathlib.Path(sys.argv[1]), (1024, 65536)
file = tensors.DiskFile(path)
tensors.read_slice(file, 0, shape, np.dtype(np.uint8), ((0, 1), (0, 1)))
before = peak()
for row in range(0, 1024, 64):
    tensors.read_slice(file, 0, shape, np.dtype(np.uint8), ((row, row + 64), (0, 65536)))
for column in range(0, 65536, 4096):
    tensors.read_slice(file, 0, shape, np.dtype(np.uint8), ((0, 1024), (column, column + 4096)))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_memory_stays_near_one_slice(tmp_path: pathlib.Path):
    """64 MiB read in slices of 4 MiB."""
    path = tmp_path / "array"
    path.write_bytes(bytes(64 * 2**20))
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 12 * 2**20
