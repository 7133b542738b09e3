"""Which part of a file a part of a parameter is, and how several are read at once."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mmjax.weights.placing import boxes, within
from mmjax.weights.rules import (
    IDENTITY,
    TRANSPOSED,
    Interleaved,
    InterleavedVector,
    Layout,
    LeadingOnes,
    Patches,
    TensorSlice,
)
from mmjax.weights.targets import region_shape

LAYOUTS: dict[str, tuple[Layout, tuple[int, ...]]] = {
    "identity": (IDENTITY, (6, 4)),
    "identity of a vector": (IDENTITY, (6,)),
    "transposed": (TRANSPOSED, (6, 4)),
    "transposed stack": (TRANSPOSED, (3, 6, 4)),
    "interleaved": (Interleaved(2), (6, 8)),
    "interleaved vector": (InterleavedVector(2), (8,)),
    "patches": (Patches(2), (12, 5)),
    "leading ones": (LeadingOnes(2), (6,)),
}


@pytest.mark.parametrize("name", LAYOUTS)
@hypothesis.given(data=st.data())
@hypothesis.settings(deadline=None, max_examples=30)
def test_a_part_is_made_of_what_is_read_for_it(name: str, data: st.DataObject):
    layout, shape = LAYOUTS[name]
    param = np.arange(math.prod(shape)).reshape(shape)
    tensor = layout.to_checkpoint(param)
    assert tensor.shape == layout.checkpoint_shape(shape)
    found = TensorSlice("x", tensor.shape, "x", (), layout)
    own = tuple(
        data.draw(
            st.integers(0, size - 1).flatmap(
                lambda start, s=size: st.tuples(st.just(start), st.integers(start + 1, s))
            )
        )
        for size in shape
    )
    value = found.to_param(own, tensor[tuple(slice(*ends) for ends in found.needed(own))])
    np.testing.assert_array_equal(value, param[tuple(slice(*ends) for ends in own)])


def test_where_the_layout_allows_only_the_part_is_read():
    region = ((1, 3), (4, 8))
    transposed = TensorSlice("x", (8, 6), "x", (), TRANSPOSED)
    assert transposed.needed(region) == ((4, 8), (1, 3))
    assert transposed.needed(region, rows=(1, 2)) == ((5, 6), (1, 3))
    interleaved = TensorSlice("x", (8, 6), "x", (), Interleaved(2))
    assert interleaved.needed(region) == ((0, 8), (1, 3))
    second_of_two = TensorSlice("x", (16, 6), "x", (0,), TRANSPOSED, start=8, count=8)
    assert second_of_two.needed(((0, 1), *region)) == ((12, 16), (1, 3))


def test_columns_of_the_same_rows_are_read_together_and_rows_apart():
    columns = [((0, 4), (0, 3)), ((0, 4), (3, 6))]
    assert boxes(columns) == [((0, 4), (0, 6))]
    rows = [((0, 4), (0, 6)), ((8, 12), (0, 6))]
    assert boxes(rows) == rows
    assert boxes([*columns, ((8, 12), (0, 3)), ((8, 12), (3, 6))]) == rows
    assert boxes([columns[0], columns[0]]) == [columns[0]]
    gap = [((0, 4), (0, 1)), ((0, 4), (5, 6))]
    assert boxes(gap) == gap
    assert boxes([(), ()]) == [()]


@hypothesis.given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8))
def test_every_part_is_in_a_box_and_no_more_is_read_than_the_parts(places: list[tuple[int, int]]):
    parts = [((2 * row, 2 * row + 2), (3 * column, 3 * column + 3)) for row, column in places]
    found = boxes(parts)
    assert all(any(within(part, box) is not None for box in found) for part in parts)
    assert sum(math.prod(region_shape(box)) for box in found) == 6 * len(set(parts))
