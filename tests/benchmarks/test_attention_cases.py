"""Useful FLOPs, least bytes and seconds, and masks of the attention benchmark."""

import attention_cases
import attention_jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import Case, gate_cases, gpu_cases, packed

GPU = {case.name: case for case in gpu_cases()}


def test_flops_of_a_full_shape_are_those_of_two_products():
    case = Case("", "", batch=2, rows=3, keys=5, heads=4, kv_heads=2, head_dim=8)
    assert case.flops("forward") == 2 * (2 * 2 * 4 * 3 * 5 * 8)
    assert case.flops("backward") == 2.5 * case.flops("forward")
    assert case.flops("gradient") == case.flops("forward") + case.flops("backward")


def test_causal_counts_half():
    shape = dict(batch=2, rows=64, keys=64, heads=4, kv_heads=2, head_dim=8)  # noqa: C408
    assert (
        Case("", "", form="causal", **shape).flops("forward")
        == Case("", "", **shape).flops("forward") / 2
    )


def test_one_document_without_an_image_counts_as_causal():
    shape = {"batch": 2, "heads": 4, "kv_heads": 2, "head_dim": 8}
    causal = Case("", "", rows=64, keys=64, form="causal", **shape)
    assert packed("", "", 1, 64, 0, **shape).flops("forward") == causal.flops("forward")


def test_documents_cost_as_much_as_apart_and_their_images_more():
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 8}
    together = packed("", "", 8, 64, 0, batch=2, **shape)
    assert together.flops("forward") == packed("", "", 1, 64, 0, batch=16, **shape).flops("forward")
    seen_twice = 8 * 2 * (16 * 15 / 2)  # what the causal mask hides within 16 tokens
    assert packed("", "", 8, 64, 16, batch=2, **shape).seen == together.seen + seen_twice


@pytest.mark.parametrize(
    ("name", "direction", "microseconds"),
    [
        ("vit-257", "forward", 31.6), ("vit-257", "backward", 63), ("vit-577", "forward", 110), ("vit-577", "backward", 276),
        ("vit-1297", "forward", 279), ("vit-4096", "backward", 1740), ("decoder-4096", "forward", 1392), ("decoder-4096", "backward", 3479),
    ],
)  # fmt: skip
def test_least_seconds_are_those_worked_out_by_hand(name: str, direction: str, microseconds: float):
    assert GPU[name].least_seconds(direction) * 1e6 == pytest.approx(microseconds, rel=0.01)


def test_the_bound_is_the_larger_of_work_and_traffic():
    case = Case("", "", batch=1, rows=100, keys=10, heads=2, kv_heads=1, head_dim=4)
    queries, keys, sums = 100 * 2 * 4 * 2, 10 * 4 * 2, 100 * 2 * 4
    assert case.bytes("forward") == 2 * queries + 2 * keys + sums
    assert case.bytes("backward") == 4 * queries + 4 * keys + sums
    assert case.least_seconds("forward", flops=1.0, bandwidth=1e30) == case.flops("forward")
    assert case.least_seconds("forward", flops=1e30, bandwidth=1.0) == case.bytes("forward")


def test_the_written_mask_is_the_one_of_the_kernels():
    """Two definitions: arrays compared, and intervals."""
    for case in gate_cases():
        mask = attention_jax.interval_mask(case)
        if mask is not None:
            written = np.broadcast_to(case.dense(), (case.batch, case.rows, case.keys))
            np.testing.assert_array_equal(
                np.asarray(mask.dense(case.keys)), written, err_msg=case.name
            )


def test_the_gate_has_what_makes_kernels_go_wrong():
    cases = gate_cases()
    assert any(case.prefixes is not None for case in cases) and any(
        case.blocks is not None for case in cases
    )
    assert any(not case.dense().any(axis=2).all() for case in cases), "no row that sees nothing"
    assert {case.head_dim for case in cases} == {case.head_dim for case in GPU.values()}
    assert any(case.rows % 8 for case in cases) and any(
        case.heads > case.kv_heads for case in cases
    )


def test_every_shape_that_has_to_reach_something_says_so():
    musts = {name: case.must for name, case in GPU.items() if case.must}
    assert musts == {
        "vit-1297": {"forward": 380, "backward": 290},
        "vit-4096": {"forward": 380, "backward": 290},
        "decoder-4096": {"forward": 500, "backward": 380},
        "decoder-8192": {"forward": 500, "backward": 380},
    }
    assert GPU["packed-8192"].must_dense == {"backward": 3}


def test_shrunk_shapes_keep_their_names_and_heads():
    small = attention_cases.gpu_cases(shrink=32)
    assert [case.name for case in small] == [*GPU]
    assert all(
        case.batch == 1 and case.rows <= 256 and case.heads == GPU[case.name].heads
        for case in small
    )
    assert jnp.asarray(small[6].segments).shape == (1, 256)
