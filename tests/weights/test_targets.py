"""Parameters in the making: on the host and on devices the same, quick or not."""

import gc
import weakref

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import SingleDeviceSharding

from mmjax.weights.targets import DeviceTarget, HostTarget, copy, make_target

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn)
DEVICE = SingleDeviceSharding(jax.devices()[0])


@hypothesis.given(
    st.sampled_from(DTYPES),
    st.sampled_from(DTYPES[:3]),
    st.lists(st.integers(0, 300), min_size=2, max_size=2),
    st.data(),
)
@hypothesis.settings(deadline=None, max_examples=40)
def test_copies_cast_and_transpose(
    source: type, target: type, shape: list[int], data: st.DataObject
):
    rows = np.random.default_rng(0).standard_normal(shape).astype(source)
    value = data.draw(
        st.sampled_from(
            [
                rows,
                rows.T,
                rows[None],
                rows.T[None],
                rows[0] if shape[0] else rows,
                rows[:, : shape[1] // 2].T,
            ]
        )
    )
    room = np.zeros(value.shape, target)
    copy(room, value)
    np.testing.assert_array_equal(room, value.astype(target))


@pytest.mark.parametrize("kind", [HostTarget, DeviceTarget])
def test_pieces_come_together(kind: type):
    random = np.random.default_rng(0)
    param = random.standard_normal((3, 5, 7)).astype(np.float32)
    target = kind(jax.ShapeDtypeStruct(param.shape, jnp.bfloat16), DEVICE)
    for layer in range(3):
        tensor = np.ascontiguousarray(param[layer].T)
        for rows in ((0, 3), (3, 7)):
            target.write((layer, 0, rows[0]), [tensor[slice(*rows)].T])
    value = target.array()
    assert value.sharding == DEVICE and value.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(value), param.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("kind", [HostTarget, DeviceTarget])
def test_numbers_and_vectors_have_places_too(kind: type):
    scalar = kind(jax.ShapeDtypeStruct((), jnp.float32), DEVICE)
    scalar.write((), [np.asarray(2.5, np.float32)])
    assert float(scalar.array()) == 2.5
    stack = kind(jax.ShapeDtypeStruct((2, 3), jnp.float32), DEVICE)
    for layer in range(2):
        stack.write((layer, 0), [np.arange(3, dtype=ml_dtypes.bfloat16) + layer])
    np.testing.assert_array_equal(np.asarray(stack.array()), [[0, 1, 2], [1, 2, 3]])


def test_on_the_host_nothing_is_copied_and_nothing_stays():
    target = make_target(jax.ShapeDtypeStruct((300, 300), jnp.float32), DEVICE)
    assert isinstance(target, HostTarget)
    target.write((0, 0), [np.ones((300, 300), np.float32)])
    value = target.array()
    (buffer,) = target._buffers
    assert value.unsafe_buffer_pointer() == buffer.ctypes.data
    alive = weakref.ref(buffer.base)
    del target, buffer
    assert float(value[0, 0]) == 1.0 and alive() is not None
    del value
    # At any collection jax lets go of arrays of numpy; a full one takes seconds after many tests.
    gc.collect(0)
    assert alive() is None


def test_what_is_given_away_is_not_written_over():
    """A compiled function that takes over its argument's memory must not do so with memory that is numpy's."""
    target = HostTarget(jax.ShapeDtypeStruct((64, 64), jnp.float32), DEVICE)
    target.write((0, 0), [np.ones((64, 64), np.float32)])
    buffer = target._buffers[0]
    after = jax.jit(lambda x: x + 1, donate_argnums=0)(target.array())
    assert float(after[0, 0]) == 2.0 and buffer[0, 0] == 1.0
