"""One linear map from every patch to the decoder's width: the "Linear" bridge that Chain-of-Sight compares with (arXiv:2407.15819)."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax.numpy as jnp
from flax import nnx

from mmjax.models.connectors.base import ConnectorConfig, Encoder, FlopCounter
from mmjax.models.layers import Linear
from mmjax.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class LinearConfig(ConnectorConfig):
    """Every patch of one feature layer through one matrix."""

    kind: Literal["linear"]
    feature_layers: tuple[int, ...]
    weight_std: float | None = 0.02

    def visual_tokens(self, vision: Encoder) -> int:
        return vision.patches

    def build(
        self, vision: Encoder, output_width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> nnx.Module:
        return LinearConnector(self, vision.width, output_width, dtype=dtype, rngs=rngs)

    def problems(self, path: str, vision: Encoder, *, first_stage: bool) -> Iterator[str]:
        if len(self.feature_layers) > 1:
            yield f"{path}.feature_layers: the linear connector reads one layer, not {self.feature_layers}"

    def count_flops(
        self, counter: FlopCounter, vision: Encoder, images: int, needs_gradient: bool
    ) -> bool:
        return counter.linear("connector/projection", images * vision.patches, needs_gradient)

    def activation_elements(self, vision: Encoder, output_width: int) -> int:
        return vision.patches * (vision.width + output_width)


class LinearConnector(nnx.Module):
    """y = x W + b for every patch x."""

    def __init__(
        self,
        config: LinearConfig,
        width: int,
        output_width: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.projection = Linear(
            width,
            output_width,
            axes=("embed", None),
            bias=True,
            std=config.weight_std,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, features: tuple[Float[Array, "B P D"], ...]) -> Float[Array, "B L E"]:
        return self.projection(features[-1])
