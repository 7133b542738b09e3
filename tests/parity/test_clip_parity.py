"""The vision encoder against CLIP of transformers."""

import jax
import jax.numpy as jnp
import pytest

from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.linear import LinearConfig

CONFIG = VLMConfig(
    vision=ViTConfig(image_size=42, patch_size=6, width=24, layers=3, heads=4, mlp_width=40),
    connector=LinearConfig("linear", (3,)),
    decoder=DecoderConfig(
        vocabulary=4, width=4, layers=1, heads=1, kv_heads=1, head_dim=4, mlp_width=4
    ),
    compute_dtype="float32",
)


@pytest.fixture
def clip(reference):
    return reference("clip")


@pytest.fixture
def params(clip, translated, complete):
    return complete(CONFIG, translated(clip, "weight", "vision/"))


@jax.jit
def features(params, pixels):
    return parameters.abstract(CONFIG)[0].merge(params).vision(pixels, (0, 1, 2, 3))


@jax.jit
@jax.grad
def gradient(params, pixels, probe):
    """Of a fixed random sum of the patches after one block and after three."""
    hidden = features(params, pixels)
    return jnp.sum(probe * jnp.stack([hidden[1], hidden[3]]))


def test_hidden_states_after_every_block(clip, params, close):
    """From images that CLIP's own processor normalized."""
    for block, ours in enumerate(
        features(params, jnp.asarray(clip["pixels"].transpose(0, 2, 3, 1)))
    ):
        close(ours, clip[f"hidden:{block}"][:, 1:], f"after {block} blocks")


def test_images_of_bytes_are_normalized_as_clip_does(clip, params, close):
    close(features(params, jnp.asarray(clip["images"]))[3], clip["hidden:3"][:, 1:])


def test_gradients(clip, params, translated, close_trees):
    pixels, probe = jnp.asarray(clip["pixels"].transpose(0, 2, 3, 1)), jnp.asarray(clip["probe"])
    close_trees(gradient(params, pixels, probe), translated(clip, "gradient", "vision/"))
