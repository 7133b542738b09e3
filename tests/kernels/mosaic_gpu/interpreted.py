"""The Hopper kernels in the interpreter of Mosaic GPU, and their results against float64."""

import functools

import jax
import numpy as np

from mmjax.kernels import _plgpu as gpu
from mmjax.kernels.attention.mosaic_gpu import attention
from tests.kernels.mosaic_gpu import exact, interpreter

WORST = {"out": 4e-3, "dq": 1e-2, "dk": 1e-2, "dv": 1e-2}


def run(q, k, v, dout, mask, scale=None, softcap=None, **options):
    """(out, dq, dk, dv) of the kernels."""
    scale = q.shape[3] ** -0.5 if scale is None else scale
    call = functools.partial(
        attention, mask=mask, scale=scale, softcap=softcap, interpreter=gpu.Interpreter(), **options
    )

    @jax.jit
    def both(q, k, v, dout):
        out, back = jax.vjp(lambda *arrays: call(*arrays), q, k, v)
        return out, *back(dout)

    with interpreter.additions():
        return jax.block_until_ready(both(q, k, v, dout))


def check(arrays, mask, scale=None, softcap=None, **options):
    """All four against float64; returns what the kernels gave."""
    scale = arrays[0].shape[3] ** -0.5 if scale is None else scale
    found = run(*arrays, mask, scale, softcap, **options)
    wanted = exact.attention(*arrays, mask, scale, softcap)
    errors = {
        name: exact.error(one, other)
        for name, one, other in zip(exact.NAMES, found, wanted, strict=True)
    }
    print(errors)
    assert all(np.isfinite(np.asarray(one, np.float32)).all() for one in found), errors
    assert all(errors[name] <= WORST[name] for name in errors), errors
    return dict(zip(exact.NAMES, found, strict=True))
