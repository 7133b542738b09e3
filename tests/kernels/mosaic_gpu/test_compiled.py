"""The Hopper kernels compiled for an H200 on this machine: nothing spills, shared memory suffices, the tensor cores are used."""

import functools
import pathlib

import pytest

from mmjax.kernels.attention.mosaic_gpu import tuning
from tests.kernels import ahead_of_time

SHARED_MEMORY = 227 * 1024
KERNELS = ("forward", "queries", "keys")
SPILLS_ALLOWED = 128
"""Bytes of stack, stores and loads together, for the backward kernels of heads of 128 and 256 with a softcap, and for nothing else: there,
the loop over tiles that need masking has too few registers."""

pytestmark = ahead_of_time.needed
needs = functools.partial(ahead_of_time.needs, pathlib.Path(__file__).with_name("compile_for_h200.py"))


def check(case):
    short = case["softcap"] and case["head_dim"] >= 128 and case["kernel"] != "forward"
    assert case["spilled"] <= (SPILLS_ALLOWED if short else 0), case
    assert not case["serialized"], "the compiler could not keep wgmma asynchronous"
    assert case["shared"] <= SHARED_MEMORY, case
    assert case["wgmma_count"] > 0 and all(shape.startswith("m64n") for shape in case["wgmma"]), case


def test_one_head_dimension():
    for case in needs(*({"kernel": kernel, "head_dim": 128} for kernel in KERNELS)):
        check(case)


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", tuning.HEAD_DIMENSIONS)
def test_every_head_dimension_with_and_without_prefix_and_softcap(head_dim):
    variants = ({}, {"intervals": 2}, {"softcap": 30.0}, {"intervals": 2, "softcap": 30.0, "dtype": "float16"})
    if tuning.tiles(head_dim, masked=False) != tuning.tiles(head_dim, masked=True):  # the tiles are all that differs
        variants += ({"masked": False},)
    for case in needs(*({"kernel": kernel, "head_dim": head_dim} | variant for kernel in KERNELS for variant in variants)):
        check(case)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "keys"), [(257, 77), (1, 1), (8, 1000)])
def test_lengths_that_no_tile_divides(rows, keys):
    """With the padding that a call adds, because TMA wants multiples of eight, which the interpreter does not know."""
    (case,) = needs({"kernel": "whole", "head_dim": 64, "rows": rows, "keys": keys, "heads": 4, "kv_heads": 4})
    check(case)


@pytest.mark.slow
def test_temporary_memory_grows_with_the_length_and_not_with_its_square():
    """Forward and backward of 16k and 32k tokens. A matrix of scores would be 8 heads x 2 GiB; nothing has an element for each of one
    head, and so there is no mask as an array either."""
    long = {"kernel": "whole", "head_dim": 128, "batch": 1, "intervals": 2}
    half, whole = needs(*(long | {"rows": length, "keys": length} for length in (16384, 32768)))
    outputs = 32768 * 8 * 128 * 2
    assert whole["temporary"] < 6 * outputs, whole
    assert whole["temporary"] < 2.4 * half["temporary"], (half, whole)
    assert all(case["largest"] < case["rows"] * case["keys"] for case in (half, whole)), (half, whole)
