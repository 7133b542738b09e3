"""Attention: every implementation against the definition, and the mask against a mask written with loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.kernels.attention import IMPLEMENTATIONS, IntervalMask, attention


def looped_mask(segments, prefixes):
    rows, length = segments.shape
    seen = np.zeros((rows, length, length), bool)
    for b in range(rows):
        for i in range(length):
            for j in range(length):
                own = segments[b, i] == segments[b, j] and j <= i
                prefix = prefixes[b, i] > 0 and segments[b, j] == prefixes[b, i]
                seen[b, i, j] = segments[b, i] > 0 and (own or prefix)
    return seen


@st.composite
def packed_rows(draw):
    lengths = draw(st.lists(st.integers(1, 5), min_size=0, max_size=5))
    padding = draw(st.integers(0 if lengths else 1, 4))
    segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    shared = [0, *(draw(st.integers(0, number - 1)) for number in range(1, len(lengths) + 1))]
    prefixes = np.array([shared[number] for number in segments], int)
    pad = np.zeros(padding, int)
    return np.concatenate([segments, pad])[None].astype(np.int32), np.concatenate([prefixes, pad])[None].astype(np.int32)


@given(packed_rows())
@settings(max_examples=60, deadline=None)
def test_the_mask_of_packed_segments_is_the_looped_one(row):
    segments, prefixes = row
    mask = IntervalMask.from_segments(jnp.asarray(segments), jnp.asarray(prefixes))
    np.testing.assert_array_equal(mask.dense(segments.shape[1]), looped_mask(segments, prefixes))


def test_without_prefixes_segments_are_causal_islands():
    segments = np.array([[1, 1, 2, 2, 2, 0]], np.int32)
    mask = IntervalMask.from_segments(jnp.asarray(segments))
    np.testing.assert_array_equal(mask.dense(6), looped_mask(segments, np.zeros_like(segments)))


def make_inputs(heads, kv_heads, length=7, keys=9, seed=0, dtype=jnp.float32):
    k = jax.random.split(jax.random.key(seed), 3)
    shapes = [(2, length, heads, 8), (2, keys, kv_heads, 8), (2, keys, kv_heads, 8)]
    return tuple(jax.random.normal(key, shape, dtype) for key, shape in zip(k, shapes, strict=True))


MASKS = {
    "none": None,
    "intervals": IntervalMask(jnp.arange(7)[None].repeat(2, 0) // 2, 1 + jnp.arange(7)[None].repeat(2, 0)),
    "with prefix and an empty row": IntervalMask(
        jnp.full((2, 7), 4),
        4 + jnp.arange(7)[None].repeat(2, 0) % 5,
        jnp.zeros((2, 7), int),
        3 * (jnp.arange(7)[None].repeat(2, 0) % 5 > 0),
    ),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_values_and_gradients_are_those_of_the_definition(mask, heads, kv_heads, softcap):
    inputs = make_inputs(heads, kv_heads)
    weight = jax.random.normal(jax.random.key(9), inputs[0].shape)

    def loss(implementation):
        return lambda *x: jnp.sum(weight * attention(*x, MASKS[mask], softcap=softcap, implementation=implementation))

    for got, wanted in zip(
        jax.value_and_grad(loss("xla"), (0, 1, 2))(*inputs), jax.value_and_grad(loss("reference"), (0, 1, 2))(*inputs), strict=True
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5), got, wanted)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_row_that_sees_nothing_is_zero_and_has_no_gradient(implementation):
    q, k, v = make_inputs(2, 2)
    mask = IntervalMask(jnp.full((2, 7), 3), jnp.where(jnp.arange(7) == 4, 3, 5)[None].repeat(2, 0))
    out, gradient = jax.value_and_grad(lambda v: attention(q, k, v, mask, implementation=implementation)[:, 4].sum())(v)
    assert out == 0 and not np.any(gradient)
    whole = attention(q, k, v, mask, implementation=implementation)
    assert np.all(np.isfinite(whole)) and np.any(whole[:, 3])


def test_hidden_keys_do_not_matter():
    q, k, v = make_inputs(2, 1)
    mask = IntervalMask(jnp.full((2, 7), 2), jnp.full((2, 7), 6))
    other = k.at[:, 6:].set(99.0), v.at[:, :2].set(-99.0)
    np.testing.assert_array_equal(attention(q, k, v, mask), attention(q, *other, mask))


def test_bfloat16_stays_bfloat16_and_close():
    low = make_inputs(4, 2, dtype=jnp.bfloat16)
    out = attention(*low)
    assert out.dtype == jnp.bfloat16
    wanted = attention(*(x.astype(jnp.float32) for x in low), implementation="reference")
    np.testing.assert_allclose(out.astype(jnp.float32), wanted, atol=0.03)


def test_wrong_calls_are_refused_in_words():
    with pytest.raises(ValueError, match="3 query heads cannot share 2"):
        attention(*make_inputs(3, 2))
    with pytest.raises(ValueError, match=r"no attention implementation 'cudnn'.*reference, xla"):
        attention(*make_inputs(2, 2), implementation="cudnn")
