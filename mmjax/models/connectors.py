"""What stands between encoder and decoder: one class per kind of `ConnectorConfig`."""

import jax.numpy as jnp
from flax import nnx

from mmjax.models.boundaries import Boundaries
from mmjax.models.config import ConnectorConfig, LinearConfig, MLPConfig
from mmjax.models.linear import Linear
from mmjax.models.mlp import ACTIVATIONS
from mmjax.models.resampler import Resampler
from mmjax.typing import Array, Float


class LinearConnector(nnx.Module):
    """Every patch of the last feature layer through one matrix to the decoder's width."""

    def __init__(self, config: LinearConfig, width: int, output_width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.projection = Linear(width, output_width, axes=("embed", None), bias=True, std=config.weight_std, dtype=dtype, rngs=rngs)

    def __call__(self, features: tuple[Float[Array, "B P D"], ...]) -> Float[Array, "B L E"]:
        return self.projection(features[-1])


class MLPConnector(nnx.Module):
    """Every patch of the last feature layer, and the class token if it stands before them, through a two-layer perceptron."""

    def __init__(self, c: MLPConfig, width: int, output_width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.up = Linear(width, c.hidden_width, axes=("embed", "mlp"), bias=True, std=c.weight_std, dtype=dtype, rngs=rngs)
        self.down = Linear(c.hidden_width, output_width, axes=("mlp", "embed"), bias=True, std=c.weight_std, dtype=dtype, rngs=rngs)
        if c.boundaries:
            self.boundaries = Boundaries(output_width, rngs)
        self.config = c

    def __call__(self, features: tuple[Float[Array, "B P D"], ...]) -> Float[Array, "B L E"]:
        tokens = self.down(ACTIVATIONS[self.config.activation](self.up(features[-1])))
        return self.boundaries(tokens) if self.config.boundaries else tokens


def make_connector(
    config: ConnectorConfig, feature_width: int, output_width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
) -> Resampler | LinearConnector | MLPConnector:
    if isinstance(config, LinearConfig):
        return LinearConnector(config, feature_width, output_width, dtype=dtype, rngs=rngs)
    if isinstance(config, MLPConfig):
        return MLPConnector(config, feature_width, output_width, dtype=dtype, rngs=rngs)
    assert config.width == feature_width, "a resampler works at the encoder's width"
    return Resampler(config, output_width, dtype=dtype, rngs=rngs)
