"""Tiny models of two stages."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, LoRAConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.linear import LinearConfig
from mmjax.models.connectors.resampler import ResamplerConfig
from mmjax.typing import Params

MakeModel = Callable[..., VLMConfig]

VISION = ViTConfig(image_size=28, patch_size=7, width=8, layers=2, heads=2, mlp_width=16)
DECODER = DecoderConfig(
    vocabulary=16, width=12, layers=2, heads=2, kv_heads=1, head_dim=6, mlp_width=16
)


def _make_model(
    image_size: int = 28,
    windows: tuple[int, ...] = (4, 2),
    queries: tuple[int, ...] = (2, 8),
    *,
    parents: tuple[int, ...] = (),
    lora: LoRAConfig | None = None,
    linear: bool = False,
    decoder: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    connector: dict[str, Any] | None = None,
) -> VLMConfig:
    """A model with patches of 7 x 7 pixels; the defaults are two scales on a grid of 4 x 4."""
    resampler = ResamplerConfig(
        "resampler", windows, queries, (1, 2), width=8, head_dim=4, mlp_width=16, parents=parents
    )
    return VLMConfig(
        vision=dataclasses.replace(VISION, image_size=image_size, **(vision or {})),
        connector=LinearConfig("linear", (2,))
        if linear
        else dataclasses.replace(resampler, **(connector or {})),
        decoder=dataclasses.replace(DECODER, **(decoder or {})),
        lora=lora or LoRAConfig(),
        compute_dtype="float32",
    )


@pytest.fixture
def make_model() -> MakeModel:
    return _make_model


@pytest.fixture(scope="session")
def random_params() -> Callable[[VLMConfig], Params]:
    """Parameters of which every one is random, biases, scales and LoRA's B included."""

    def make(config: VLMConfig, seed: int = 0) -> Params:
        generator = np.random.default_rng(seed)
        leaves = parameters.abstract(config)[1]
        return {
            path: jnp.asarray(generator.normal(0, 0.3, leaf.shape), jnp.float32)
            for path, leaf in leaves.items()
        }

    return make
