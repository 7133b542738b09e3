"""Maps show the weights that the resampler uses, at the place of the patch that they fall on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.evaluation import attention_maps
from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.base import AttentionMap
from mmjax.models.connectors.resampler import ResamplerConfig, on_grid, partition

CONFIG = VLMConfig(
    ViTConfig(32, 4, 16, 2, 2, 32, class_token=False, weight_std=None, embedding_std=0.5),
    ResamplerConfig(
        "resampler", (8, 4, 2), (2, 8, 16), (1, 2), 16, 8, 32, weight_std=None, query_std=1.0
    ),
    DecoderConfig(8, 16, 1, 2, 1, 8, 32),
    compute_dtype="float32",
)


@pytest.fixture(scope="module")
def maps() -> list[AttentionMap]:
    model_def, _ = parameters.abstract(CONFIG)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return attention_maps.compute(model_def, draw(CONFIG), pixels)


def draw(config: VLMConfig) -> dict[str, jax.Array]:
    """Random parameters, without the program that initialises them; norms scale by one, and nothing has a bias."""
    rng = np.random.default_rng(0)
    fixed = {"scale": 1.0, "bias": 0.0}
    return {
        path: jnp.asarray(
            np.full(leaf.shape, fixed[path.rsplit("/")[-1]])
            if path.endswith(tuple(fixed))
            else rng.normal(0, 0.3, leaf.shape),
            jnp.float32,
        )
        for path, leaf in parameters.abstract(config)[1].items()
    }


def test_shapes_and_sums(maps: list[AttentionMap]) -> None:
    assert [scale.window for scale in maps] == [8, 4, 2]
    assert [scale.weights.shape for scale in maps] == [(2, 2, 8, 8), (2, 2, 8, 8), (2, 1, 8, 8)]
    for scale in maps:
        windows = 8 // scale.window
        tiles = scale.weights.reshape(2, -1, windows, scale.window, windows, scale.window)
        np.testing.assert_allclose(tiles.sum(axis=(3, 5)), 1.0, rtol=1e-5)
        assert scale.weights.std() > 1e-3, "weights are not uniform"


def test_maps_reproduce_the_resamplers_attention() -> None:
    """With one head, identity values and no MLP, what a level adds to a query is the mean of its features under the weights."""
    one_head = ResamplerConfig(
        "resampler", (4, 2), (2, 8), (1, 2), 16, 16, 32, weight_std=None, query_std=1.0
    )
    config = VLMConfig(CONFIG.vision, one_head, CONFIG.decoder, compute_dtype="float32")
    model_def, _ = parameters.abstract(config)
    params = draw(config)
    for path in params:
        if path.startswith("connector/scales") and path.endswith(("value/kernel", "output/kernel")):
            params[path] = jnp.eye(16)
        if "/mlp/" in path and path.startswith("connector"):
            params[path] = jnp.zeros_like(params[path])
    features = tuple(jax.random.normal(jax.random.key(2), (2, 1, 16, 16)))
    for scale in model_def.merge(params).connector.scales:
        weights = np.asarray(scale.attention_map(features))
        read = scale(features) - scale.start(1, 16).reshape(1, -1, 16)
        normed = np.stack(
            [
                level.norm_features(of_level)[0]
                for level, of_level in zip(scale.blocks, features, strict=True)
            ]
        )
        side = 4 // scale.window
        tiles = weights.reshape(2, -1, side, scale.window, side, scale.window)
        grid = normed.reshape(2, side, scale.window, side, scale.window, 16)
        expected = np.einsum("lqawbv,lawbvd->abqd", tiles, grid).reshape(1, -1, 16)
        np.testing.assert_allclose(read, expected, atol=1e-5)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31))
def test_on_grid_undoes_the_partition(window: int, side: int, seed: int) -> None:
    grid = np.random.default_rng(seed).random(((side * window) ** 2, 1), dtype=np.float32)
    tiles = partition(jnp.asarray(grid[None]), window)[:, None, :, 0]
    np.testing.assert_array_equal(on_grid(tiles, window)[0], grid.reshape(side * window, -1))
