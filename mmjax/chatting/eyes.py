"""Pictures as embeddings: encoder and connector of a whole model, without its decoder."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models import parameters
from mmjax.models.config import VLMConfig
from mmjax.typing import Array, Float, Params, UInt8

Encode = Callable[[UInt8[np.ndarray, "h w 3"]], Float[Array, "L D"]]


def make_encode(config: VLMConfig, params: Params) -> Encode:
    """The function from the pixels of one picture to its visual tokens, in the compute dtype.

    Args:
        params: the parameters of the encoder and the connector; others are not needed.
    """
    structure, shapes = parameters.abstract(config)
    seeing = {path: value for path, value in params.items() if not path.startswith("decoder/")}

    @jax.jit
    def encode(params: Params, pixels: Array) -> Array:
        # The module has a decoder, which is not asked: its zeros exist for the compiler only, which leaves them out.
        others = {path: jnp.zeros(shape.shape, shape.dtype) for path, shape in shapes.items() if path not in params}
        return structure.merge(params | others).encode_images(pixels[None, None])[0, 0]

    return lambda pixels: encode(seeing, pixels)
