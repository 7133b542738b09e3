"""Errors in bfloat16: no implementation is much farther from float64 than two plain matrix products in XLA are on the same inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.kernels.attention import IntervalMask, splash, xla, xla_chunked
from tests.kernels.mosaic_gpu import exact, interpreted

LENGTH, HEAD = 200, 64
WORSE = 1.5
"""At most this often the error of XLA."""

MASKS = {
    "none": lambda: None,
    "causal": lambda: IntervalMask.causal(1, LENGTH),
    "segments": lambda: IntervalMask.from_segments(jnp.repeat(jnp.array([1, 2, 3, 4, 0]), jnp.array([64, 1, 70, 57, 8]))[None]),
    "prefix": lambda: exact.segments([(64, 0), (41, 0), (30, 2), (57, 2), (8, -1)]),
}


def by_xla(attend, q, k, v, dout, mask):
    @jax.jit
    def both(q, k, v, dout):
        out, back = jax.vjp(lambda *x: attend(*x, mask, HEAD**-0.5, None), q, k, v)
        return out, *back(dout)

    return both(q, k, v, dout)


def in_small_tiles(*call):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(xla_chunked.TILES, "cpu", xla_chunked.Tile(64, 64, alone=True))
        return by_xla(xla_chunked.attention, *call)


IMPLEMENTATIONS = {
    "xla_chunked": in_small_tiles,
    "splash": functools.partial(by_xla, functools.partial(splash.attention, interpret=True)),
    "mosaic_gpu": interpreted.run,
    "mosaic_gpu, fused": functools.partial(interpreted.run, deterministic=False),
}
FAST = [("xla_chunked", mask) for mask in MASKS] + [("splash", "segments")]
SLOW = [("splash", "none"), ("splash", "causal"), *((name, mask) for name in ("mosaic_gpu", "mosaic_gpu, fused") for mask in MASKS)]


@functools.cache
def example(mask):
    """Inputs, the mask, what is right, and the errors of XLA."""
    arrays = exact.inputs(LENGTH, LENGTH, 4, 2, HEAD, seed=list(MASKS).index(mask))
    wanted = exact.attention(*arrays, MASKS[mask](), HEAD**-0.5)
    return arrays, MASKS[mask](), wanted, errors(by_xla(xla.attention, *arrays, MASKS[mask]()), wanted)


def errors(found, wanted):
    assert all(one.dtype == jnp.bfloat16 for one in found)
    return {name: exact.error(np.asarray(one, np.float64), other) for name, one, other in zip(exact.NAMES, found, wanted, strict=True)}


@pytest.mark.parametrize(("implementation", "mask"), [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_errors_are_near_those_of_xla(implementation, mask):
    arrays, intervals, wanted, of_xla = example(mask)
    found = errors(IMPLEMENTATIONS[implementation](*arrays, intervals), wanted)
    print(f"{implementation}, {mask}:", {name: (f"{found[name]:.2e}", f"{found[name] / of_xla[name]:.2f} x XLA") for name in found})
    assert all(found[name] <= WORSE * of_xla[name] for name in found), (found, of_xla)
    assert all(found[name] <= interpreted.WORST[name] for name in found), found
