"""Splash attention, interpreted: the masks that it knows, lengths that are no multiples of its tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.kernels.attention import IntervalMask, attention, splash

ROWS = 150
SEGMENTS = np.concatenate([np.repeat([1, 2, 3], [50, 60, 1]), np.zeros(39, np.int32)])[None].repeat(
    2, 0
)
MASKS = {
    "none": lambda: None,
    "full": lambda: IntervalMask.full(2, ROWS, ROWS),
    "causal": lambda: IntervalMask.causal(2, ROWS),
    "segments": lambda: IntervalMask.from_segments(jnp.asarray(SEGMENTS)),
}
SLOW = [("none", 4, None), ("full", 1, None), ("causal", 2, 5.0)]
CASES = [("segments", 2, None), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


@pytest.mark.parametrize(("mask", "kv_heads", "softcap"), CASES)
def test_values_and_gradients_are_those_of_the_definition(mask, kv_heads, softcap):
    random = np.random.default_rng(0)
    q, k, v, weight = (
        jnp.asarray(random.normal(size=(2, ROWS, heads, 64)), jnp.float32)
        for heads in (4, kv_heads, kv_heads, 4)
    )

    def of(attend):
        return jax.value_and_grad(lambda q, k, v: jnp.sum(weight * attend(q, k, v)), (0, 1, 2))(
            q, k, v
        )

    got = of(lambda *x: splash.attention(*x, MASKS[mask](), 0.125, softcap, interpret=True))
    wanted = of(
        lambda *x: attention(
            *x, MASKS[mask](), scale=0.125, softcap=softcap, implementation="reference"
        )
    )
    for a, b in zip(*map(jax.tree.leaves, (got, wanted)), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)
