"""Every patch through a two-layer perceptron: the connector of LLaVA-1.5 (arXiv:2310.03744) and, with the choices of `MLPConfig`, that of
surrogate grafting (arXiv:2505.22664)."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax.numpy as jnp
from flax import nnx

from mmjax.models.config import Activation
from mmjax.models.connectors.base import ConnectorConfig, Encoder, FlopCounter, PatchMLP
from mmjax.models.layers import ACTIVATIONS, ImageBoundaryTokens, Linear
from mmjax.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class MLPConfig(ConnectorConfig):
    """down(activation(up(x))) of every patch x, with biases.

    Attributes:
        class_token: whether the encoder's class token becomes a visual token, too, the first one.
        final_norm: whether features are read through the norm that the encoder ends in.
        image_boundary_tokens: whether a learned vector stands before and another one behind the visual tokens of an image.
    """

    kind: Literal["mlp"]
    feature_layers: tuple[int, ...]
    hidden_width: int
    activation: Activation = "gelu"
    weight_std: float | None = 0.02
    class_token: bool = False
    final_norm: bool = False
    image_boundary_tokens: bool = False

    def visual_tokens(self, vision: Encoder) -> int:
        return vision.patches + self.class_token + 2 * self.image_boundary_tokens

    def build(
        self, vision: Encoder, output_width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> nnx.Module:
        return MLPConnector(self, vision.width, output_width, dtype=dtype, rngs=rngs)

    def problems(self, path: str, vision: Encoder, *, first_stage: bool) -> Iterator[str]:
        if len(self.feature_layers) > 1:
            yield f"{path}.feature_layers: the mlp connector reads one layer, not {self.feature_layers}"
        if self.hidden_width <= 0:
            yield f"{path}.hidden_width must be positive, not {self.hidden_width}"
        if self.class_token and not vision.class_token:
            yield f"{path}.class_token needs an encoder with a class token, and this one has none (vision.class_token)"
        if self.final_norm and not vision.final_norm:
            yield f"{path}.final_norm needs an encoder that ends in a norm, and this one does not (vision.final_norm)"

    def as_patch_mlp(self) -> PatchMLP | None:
        if self.class_token or self.final_norm or self.image_boundary_tokens:
            return None
        return PatchMLP(self.feature_layers[0], self.hidden_width, self.activation)

    def count_flops(
        self, counter: FlopCounter, vision: Encoder, images: int, needs_gradient: bool
    ) -> bool:
        rows = images * (vision.patches + self.class_token)
        hidden = counter.linear("connector/up", rows, needs_gradient)
        return counter.linear("connector/down", rows, hidden) or counter.trains(
            "connector/image_boundary_tokens"
        )

    def activation_elements(self, vision: Encoder, output_width: int) -> int:
        return vision.patches * (vision.width + 2 * self.hidden_width + output_width)


class MLPConnector(nnx.Module):
    """The perceptron, and the boundary tokens around what it gives."""

    def __init__(
        self, c: MLPConfig, width: int, output_width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.up = Linear(
            width,
            c.hidden_width,
            axes=("embed", "mlp"),
            bias=True,
            std=c.weight_std,
            dtype=dtype,
            rngs=rngs,
        )
        self.down = Linear(
            c.hidden_width,
            output_width,
            axes=("mlp", "embed"),
            bias=True,
            std=c.weight_std,
            dtype=dtype,
            rngs=rngs,
        )
        if c.image_boundary_tokens:
            self.image_boundary_tokens = ImageBoundaryTokens(output_width, rngs)
        self.config = c

    def __call__(self, features: tuple[Float[Array, "B P D"], ...]) -> Float[Array, "B L E"]:
        tokens = self.down(ACTIVATIONS[self.config.activation](self.up(features[-1])))
        return self.image_boundary_tokens(tokens) if self.config.image_boundary_tokens else tokens
