"""Resizing the position table; tests/parity compares the numbers with PyTorch's."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import transitions
from mmjax.errors import InputError
from mmjax.models.vit import interpolation_matrix, resize_table

SIDES = st.integers(1, 9)


@hypothesis.given(before=SIDES, after=st.integers(2, 9), align_corners=st.booleans())
@hypothesis.settings(deadline=None)
def test_a_constant_stays_and_mirrored_tables_give_mirrored_tables(before, after, align_corners):
    matrix = interpolation_matrix(before, after, align_corners=align_corners)
    assert matrix.shape == (after, before)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-6)


@pytest.mark.parametrize("align_corners", [True, False])
def test_the_same_grid_is_the_identity(align_corners):
    np.testing.assert_array_equal(
        interpolation_matrix(5, 5, align_corners=align_corners), np.eye(5)
    )


@hypothesis.given(before=SIDES, after=st.integers(2, 9))
@hypothesis.settings(deadline=None)
def test_aligned_corners_are_kept(before, after):
    matrix = interpolation_matrix(before, after, align_corners=True)
    np.testing.assert_allclose(
        matrix[[0, -1]], np.eye(before, dtype=np.float32)[[0, -1]], atol=1e-6
    )


def test_the_kernel_is_keys_with_three_quarters():
    """By hand: half way between two samples, x = 0.5 and 1.5 give 0.59375 and -0.09375 at a = -0.75 (at a = -0.5: 0.5625, -0.0625)."""
    np.testing.assert_allclose(
        interpolation_matrix(4, 7, align_corners=True)[3],
        [-0.09375, 0.59375, 0.59375, -0.09375],
        atol=1e-6,
    )


def test_rows_and_columns_are_not_exchanged():
    table = jnp.broadcast_to(jnp.arange(3.0)[:, None, None], (3, 3, 1)).reshape(
        9, 1
    )  # grows from row to row
    resized = np.asarray(resize_table(table, (3, 3), (5, 5), align_corners=True)).reshape(5, 5)
    np.testing.assert_allclose(np.ptp(resized, axis=1), 0, atol=1e-6)
    assert (np.diff(resized[:, 0]) > 0).all()


@pytest.mark.parametrize("name", ["resize_positions", "resize_positions_half_pixel"])
def test_the_class_position_is_kept(name, make_model, random_params):
    old, new = make_model(28, (4, 2), (2, 8)), make_model(42, (6, 3), (2, 8))
    before = random_params(old)
    after, manifest = transitions.apply(
        (name,), before, old, new, jax.random.key(0), stage="finetune"
    )
    assert after["vision/position"].shape == (1 + 36, 8)
    np.testing.assert_array_equal(after["vision/position"][0], before["vision/position"][0])
    entry = next(entry for entry in manifest.entries if entry.target == "vision/position")
    assert entry.how == "resized" and entry.note.startswith("4 x 4 to 6 x 6")


def test_the_two_rules_differ(make_model, random_params):
    old, new = make_model(28, (4, 2), (2, 8)), make_model(42, (6, 3), (2, 8))
    before = random_params(old)
    one, two = (
        transitions.apply((name,), before, old, new, jax.random.key(0), stage="finetune")[0][
            "vision/position"
        ]
        for name in ("resize_positions", "resize_positions_half_pixel")
    )
    assert np.abs(np.asarray(one - two)).max() > 0.01


def test_without_a_class_token_the_whole_table_is_the_grid(make_model, random_params):
    old = make_model(28, (4, 2), (2, 8), vision={"class_token": False})
    new = make_model(56, (8, 4), (2, 8), vision={"class_token": False})
    after, _ = transitions.apply(
        ("resize_positions",), random_params(old), old, new, jax.random.key(0), stage="finetune"
    )
    assert after["vision/position"].shape == (64, 8)


def test_the_same_grid_is_copied(make_model, random_params):
    config = make_model()
    before = random_params(config)
    after, manifest = transitions.apply(
        ("resize_positions",), before, config, config, jax.random.key(0), stage="finetune"
    )
    assert after["vision/position"] is before["vision/position"]
    assert {entry.how for entry in manifest.entries} == {"copied"}


def test_a_class_token_does_not_come_or_go(make_model):
    with pytest.raises(InputError, match="only one of the two encoders has a class token"):
        transitions.plan(
            ("resize_positions",),
            make_model(vision={"class_token": False}),
            make_model(),
            stage="finetune",
        )


def test_resizing_twice_is_refused(make_model):
    old, new = make_model(28, (4, 2), (2, 8)), make_model(56, (8, 4), (2, 8))
    with pytest.raises(InputError, match=r"has 65 rows, not the 17 of the stage before; .* twice"):
        transitions.plan(
            ("resize_positions", "resize_positions_half_pixel"), old, new, stage="finetune"
        )
