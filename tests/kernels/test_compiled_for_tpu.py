"""Splash attention compiled for TPUs on this machine: it compiles, it is splash, and no array is as large as the scores."""

import pathlib

import pytest

from tests.kernels import ahead_of_time

SCRIPT = pathlib.Path(__file__).with_name("compile_for_tpu.py")
TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1")
FORWARD, ROWS, KEYS = "splash_mqa_fwd", "splash_mqa_dq", "splash_mqa_dkv"

pytestmark = ahead_of_time.needed


def check(case):
    wanted = (KEYS, ROWS, FORWARD) if case["gradient"] else (FORWARD,)
    found = case["kernels"]
    assert len(found) == len(wanted) and all(
        name.startswith(start) for name, start in zip(found, wanted, strict=True)
    ), case


def test_packed_segments_of_grouped_heads():
    """Of 1000 rows, which no tile divides, as everywhere here but in the last test."""
    (case,) = ahead_of_time.needs(SCRIPT, {"topology": "v5e:2x2", "mask": "segments"})
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_mask_and_head_dimension(topology):
    cases = [
        {"mask": mask, "head_dim": head_dim}
        for mask in ("full", "causal", "segments")
        for head_dim in (64, 128)
    ]
    alone = [
        {"mask": "none", "gradient": False, "kv_heads": 8},
        {"mask": "segments", "gradient": False, "softcap": 30.0},
    ]
    for case in ahead_of_time.needs(
        SCRIPT, *({"topology": topology} | case for case in [*cases, *alone])
    ):
        check(case)


@pytest.mark.slow
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_on_a_mesh_every_device_has_its_own_rows_and_heads(topology):
    """Which the compiler refuses to arrange by itself ("Mosaic kernels cannot be automatically partitioned")."""
    whole, split = ahead_of_time.needs(
        SCRIPT,
        *({"topology": topology, "mask": "segments", "split": split} for split in (None, (2, 2))),
    )
    check(split)
    assert split["gathered"] == 0 and split["largest"] <= whole["largest"]


@pytest.mark.slow
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_memory_grows_with_the_length_and_not_with_its_square(topology):
    """Forward and backward of 8k and 16k tokens. With fewer heads, all that is temporary at 8k fits in the memory of the core of a v5e,
    and is not counted."""
    long = {"topology": topology, "mask": "segments", "batch": 1, "heads": 32, "kv_heads": 8}
    half, whole = ahead_of_time.needs(
        SCRIPT, *(long | {"length": length} for length in (8192, 16384))
    )
    for case in (half, whole):
        check(case)
        assert case["largest"] < case["length"] ** 2, (
            "nothing has an element for each score or for each place of a mask"
        )
    assert whole["temporary"] < 2.4 * half["temporary"], (half, whole)
