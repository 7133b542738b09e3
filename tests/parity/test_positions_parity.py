"""Resizing of position tables against torch's bicubic interpolation."""

import jax.numpy as jnp
import pytest

from mmjax.models.vit import resize_table


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("before", "after"), [(16, 32), (16, 24), (7, 11), (8, 5), (5, 5), (1, 3), (3, 1)]
)
def test_resized_tables(before, after, align_corners, reference, close):
    theirs = reference("positions")
    table = jnp.asarray(theirs[f"{before}-{after}/table"])
    ours = resize_table(table, (before, before), (after, after), align_corners=align_corners)
    close(ours, theirs[f"{before}-{after}/{'aligned' if align_corners else 'half_pixel'}"])
