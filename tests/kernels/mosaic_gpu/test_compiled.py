"""The Hopper kernels compiled for an H200 on this machine: nothing spills, shared memory suffices, the tensor cores are used."""

import functools
import pathlib

import pytest

from mmjax.kernels.attention.mosaic_gpu import tuning
from tests.kernels import ahead_of_time

SHARED_MEMORY = 227 * 1024
KERNELS = ("forward", "queries", "keys", "fused")

pytestmark = ahead_of_time.needed
needs = functools.partial(
    ahead_of_time.needs, pathlib.Path(__file__).with_name("compile_for_h200.py")
)


def spills_allowed(case):
    """Bytes of stack, stores and loads together, where a loop has too few registers; nowhere else may anything be spilled.

    In the backward kernels of heads of 128 and 256 it is the loop over tiles that need masking, with a softcap; in the fused one of heads
    of 128, numbers that stay the same for all tiles and are read again for each.
    """
    if case["kernel"] == "forward" or case["head_dim"] < 128:
        return 0
    fused = case["kernel"] == "fused" or not case["deterministic"]
    return (448 if fused else 128) if case["softcap"] else (64 if fused else 0)


def check(case):
    assert case["spilled"] <= spills_allowed(case), case
    assert not case["serialized"], "the compiler could not keep wgmma asynchronous"
    assert case["shared"] <= SHARED_MEMORY, case
    assert case["wgmma_count"] > 0 and all(shape.startswith("m64n") for shape in case["wgmma"]), (
        case
    )


def test_one_head_dimension():
    for case in needs(*({"kernel": kernel, "head_dim": 128} for kernel in KERNELS)):
        check(case)


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", tuning.HEAD_DIMENSIONS)
def test_every_head_dimension_with_and_without_prefix_and_softcap(head_dim):
    variants = (
        {},
        {"intervals": 2},
        {"softcap": 30.0},
        {"intervals": 2, "softcap": 30.0, "dtype": "float16"},
    )
    if tuning.tiles(head_dim, masked=False) != tuning.tiles(
        head_dim, masked=True
    ):  # the tiles are all that differs
        variants += ({"masked": False},)
    kernels = [kernel for kernel in KERNELS if getattr(tuning.tiles(head_dim, masked=True), kernel)]
    for case in needs(
        *(
            {"kernel": kernel, "head_dim": head_dim} | variant
            for kernel in kernels
            for variant in variants
        )
    ):
        check(case)


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(("rows", "keys"), [(257, 77), (1, 1), (8, 1000)])
def test_lengths_that_no_tile_divides(rows, keys, deterministic):
    """With the padding that a call adds, because TMA wants multiples of eight, which the interpreter does not know."""
    shape = {"head_dim": 64, "rows": rows, "keys": keys, "heads": 4, "kv_heads": 4}
    (case,) = needs({"kernel": "whole", "deterministic": deterministic} | shape)
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [True, False])
def test_layers_in_a_loop_with_rematerialisation(deterministic):
    """Which the interpreter cannot differentiate; the fused kernel changes dq in place, and loops must bear it."""
    (case,) = needs({"kernel": "layers", "head_dim": 64, "deterministic": deterministic})
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [True, False])
def test_temporary_memory_grows_with_the_length_and_not_with_its_square(deterministic):
    """Forward and backward of 16k and 32k tokens. A matrix of scores would be 8 heads x 2 GiB; nothing has an element for each of one
    head, and so there is no mask as an array either. The fused kernel's dq in float32 counts."""
    long = {
        "kernel": "whole",
        "head_dim": 128,
        "batch": 1,
        "intervals": 2,
        "deterministic": deterministic,
    }
    half, whole = needs(*(long | {"rows": length, "keys": length} for length in (16384, 32768)))
    outputs = 32768 * 8 * 128 * 2
    assert whole["temporary"] < 6 * outputs, whole
    assert whole["temporary"] < 2.4 * half["temporary"], (half, whole)
    assert all(case["largest"] < case["rows"] * case["keys"] for case in (half, whole)), (
        half,
        whole,
    )
