"""Errors in bfloat16: no implementation is much farther from float64 than XLA's plain attention is on the same inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.kernels.attention import IntervalMask, attention, splash, xla_chunked
from tests.kernels.mosaic_gpu import exact, interpreted

LENGTH = 200
WORSE = 1.5
"""At most this often the error of XLA."""
OF_SPLASH = 4.0
"""With loud scores. Its gradient is made with the rounded result, and it is not ours."""

MASKS = {
    "none": lambda: None,
    "causal": lambda: IntervalMask.causal(1, LENGTH),
    "segments": lambda: IntervalMask.from_segments(
        jnp.repeat(jnp.array([1, 2, 3, 4, 0]), jnp.array([64, 1, 70, 57, 8]))[None]
    ),
    "prefix": lambda: exact.segments([(64, 0), (41, 0), (30, 2), (57, 2), (8, -1)]),
}


def with_gradients(attend, q, k, v, dout, mask):
    @jax.jit
    def both(q, k, v, dout):
        out, back = jax.vjp(lambda *x: attend(*x, mask), q, k, v)
        return out, *back(dout)

    return both(q, k, v, dout)


def plain(q, k, v, mask):
    """What jax has, in which a row that sees nothing is not zero."""
    if mask is None:
        return jax.nn.dot_product_attention(q, k, v)
    out = jax.nn.dot_product_attention(q, k, v, mask=mask.dense(k.shape[1])[:, None])
    return jnp.where(mask.sees_something(k.shape[1])[..., None, None], out, 0)


def in_small_tiles(*call):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(xla_chunked.TILES, "cpu", xla_chunked.Tile(64, 64, alone=True))
        return with_gradients(functools.partial(attention, implementation="xla_chunked"), *call)


def on_a_tpu(q, k, v, mask):
    return splash.attention(q, k, v, mask, q.shape[3] ** -0.5, None, interpret=True)


IMPLEMENTATIONS = {
    "xla": functools.partial(with_gradients, functools.partial(attention, implementation="xla")),
    "xla_chunked": in_small_tiles,
    "splash": functools.partial(with_gradients, on_a_tpu),
    "mosaic_gpu": interpreted.run,
    "mosaic_gpu, fused": functools.partial(interpreted.run, deterministic=False),
}
LOUD = 30.0
FAST = [(name, mask, 64, 1.0) for name in ("xla", "xla_chunked") for mask in ("segments", "prefix")]
FAST += [(name, "causal", 128, LOUD) for name in ("xla", "xla_chunked")] + [
    ("splash", "segments", 64, 1.0)
]
HOPPER = ("mosaic_gpu", "mosaic_gpu, fused")
SLOW = [("splash", mask, 64, louder) for mask in ("none", "causal") for louder in (1.0, LOUD)]
SLOW += [(name, mask, 64, 1.0) for name in ("xla", "xla_chunked") for mask in ("none", "causal")]
SLOW += [(name, mask, 64, 1.0) for name in HOPPER for mask in MASKS]
SLOW += [
    (name, "causal", head, LOUD) for name in ("xla", "xla_chunked", *HOPPER) for head in (64, 80)
]


@functools.cache
def example(mask, head, louder):
    """Inputs, the mask, what is right, and the errors of XLA."""
    arrays = exact.inputs(LENGTH, LENGTH, 4, 2, head, seed=list(MASKS).index(mask), louder=louder)
    wanted = exact.attention(*arrays, MASKS[mask](), head**-0.5)
    return (
        arrays,
        MASKS[mask](),
        wanted,
        errors(with_gradients(plain, *arrays, MASKS[mask]()), wanted),
    )


def errors(found, wanted):
    assert all(one.dtype == jnp.bfloat16 for one in found)
    return {
        name: exact.error(np.asarray(one, np.float64), other)
        for name, one, other in zip(exact.NAMES, found, wanted, strict=True)
    }


@pytest.mark.parametrize(
    ("implementation", "mask", "head", "louder"),
    [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_errors_are_near_those_of_xla(implementation, mask, head, louder):
    arrays, intervals, wanted, of_xla = example(mask, head, louder)
    found = errors(IMPLEMENTATIONS[implementation](*arrays, intervals), wanted)
    print(
        f"{implementation}, {mask}:",
        {name: (f"{found[name]:.2e}", f"{found[name] / of_xla[name]:.2f} x XLA") for name in found},
    )
    worse = WORSE if (implementation, louder) != ("splash", LOUD) else OF_SPLASH
    assert all(found[name] <= worse * of_xla[name] for name in found), (found, of_xla)
    assert all(found[name] <= interpreted.WORST[name] for name in found), found
