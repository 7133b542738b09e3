"""The resampler: windows, order, locality, and the numbers of the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.models import parameters
from mmjax.models.config import VLMConfig
from mmjax.models.connectors.resampler import Resampler, ResamplerConfig, partition
from mmjax.models.presets import clip_vit_l14, vicuna_7b

C = ResamplerConfig(
    "resampler",
    (4, 2),
    (2, 8),
    (1, 2),
    width=8,
    head_dim=4,
    mlp_width=12,
    weight_std=0.5,
    query_std=0.5,
)


@pytest.fixture(scope="module")
def resampler():
    return Resampler(C, 6, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))


def features(seed=0):
    return tuple(
        jax.random.normal(key, (2, 16, 8)) for key in jax.random.split(jax.random.key(seed))
    )


@given(st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=16, deadline=None)
def test_windows_are_a_bijection_of_the_patches_row_by_row(windows, window):
    side = windows * window
    patches = np.arange(side**2, dtype=np.float32).reshape(1, -1, 1)
    got = np.asarray(partition(jnp.asarray(patches), window))[..., 0]
    assert sorted(got.ravel()) == list(range(side**2))
    grid = patches.reshape(side, side)
    for number in range(windows**2):
        row, column = divmod(number, windows)
        wanted = grid[row * window : (row + 1) * window, column * window : (column + 1) * window]
        np.testing.assert_array_equal(got[number], wanted.ravel())


@pytest.mark.parametrize("token", [2, 5, 6, 9])  # one of each window, first and second ones
def test_a_local_token_sees_its_window_and_nothing_else(resampler, token):
    """The gradient of a token of the fine scale with respect to the features: exactly 0 outside of the window, and not inside."""

    def score(x):
        return resampler(x)[0, token].sum()

    window = (token - 2) // 2  # two queries a window, windows in row-major order
    row, column = divmod(window, 2)
    inside = np.zeros((4, 4), bool)
    inside[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = True
    for gradient in jax.jit(jax.grad(score))(features()):
        size = np.abs(np.asarray(gradient)[0].reshape(4, 4, 8)).sum(-1)
        assert np.all(size[~inside] == 0) and np.all(size[inside] > 0)
        assert not np.any(np.asarray(gradient)[1])


def test_global_tokens_see_every_patch(resampler):
    for gradient in jax.jit(jax.grad(lambda x: resampler(x)[0, :2].sum()))(features()):
        assert np.all(np.abs(np.asarray(gradient)[0]).sum(-1) > 0)


def test_the_weights_to_look_at_are_those_of_the_attention(resampler):
    scale, x = resampler.scales[1], features()[0]
    block, q, windows = scale.blocks[0], scale.start(2, 16), partition(x, 2)
    weights = block.weights(q, windows)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    value = block.split(block.value(block.norm_features(windows)))
    mixed = jnp.einsum("BNTS,BSNH->BTNH", weights, value)
    after = q + block.output(block.join(mixed))
    np.testing.assert_allclose(
        after + block.mlp(block.norm_mlp(after)), block(q, windows), atol=1e-5
    )


def cos(image_size, windows, queries):
    resampler = ResamplerConfig(
        "resampler", windows, queries, (16, 23), width=1024, head_dim=64, mlp_width=4096
    )
    return VLMConfig(clip_vit_l14(image_size, layers=23), resampler, vicuna_7b())


@pytest.mark.parametrize(
    ("image_size", "windows", "queries", "tokens"),
    [
        (224, (16, 4), (16, 16), 32),
        (224, (16, 4), (16, 32), 48),
        (224, (16, 4), (16, 64), 80),
        (448, (32, 16, 4), (16, 64, 256), 336),
        (448, (32, 8, 2), (16, 256, 256), 528),
        (448, (32, 8, 2), (16, 256, 512), 784),
        (448, (32, 16, 2), (16, 64, 1024), 1104),
        (448, (32, 8, 2), (16, 256, 1024), 1296),
    ],
)
def test_tokens_and_shapes_of_the_paper(image_size, windows, queries, tokens):
    config = cos(image_size, windows, queries)
    assert config.visual_tokens == tokens
    model_def, shapes = parameters.abstract(config)
    images = jax.ShapeDtypeStruct((2, 1, image_size, image_size, 3), np.uint8)
    out = jax.eval_shape(lambda params, x: model_def.merge(params).encode_images(x), shapes, images)
    assert out.shape == (2, 1, tokens, 4096) and out.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("image_size", "windows", "queries", "millions"),
    [
        (224, (16, 4), (16, 64), 54.66),
        (448, (32, 16, 4), (16, 64, 256), 80.12),
        (448, (32, 8, 2), (16, 256, 1024), 81.10),
    ],
)
def test_parameters_of_the_connector(image_size, windows, queries, millions):
    _, shapes = parameters.abstract(cos(image_size, windows, queries))
    connector = {path: shape for path, shape in shapes.items() if path.startswith("connector/")}
    assert round(parameters.count(connector) / 1e6, 2) == millions


@pytest.mark.parametrize(("image_size", "grid"), [(224, 16), (448, 32)])
def test_shapes_inside_the_encoder_and_the_scales(image_size, grid):
    config = cos(image_size, (grid, grid // 4), (16, 64))
    model_def, shapes = parameters.abstract(config)

    def inside(params, pixels):
        model = model_def.merge(params)
        embedded = model.vision.embed(pixels)
        found = model.vision(pixels, (16, 23))
        return (
            embedded,
            found,
            [
                (partition(found[0], s.window), s.start(3, grid**2), s(found))
                for s in model.connector.scales
            ],
        )

    pixels = jax.ShapeDtypeStruct((3, image_size, image_size, 3), np.uint8)
    embedded, found, scales = jax.tree.map(
        lambda x: x.shape, jax.eval_shape(inside, shapes, pixels)
    )
    assert embedded == (3, grid**2 + 1, 1024)
    assert found == ((3, grid**2, 1024), (3, grid**2, 1024))
    assert scales[0] == ((3, grid**2, 1024), (3, 16, 1024), (3, 16, 1024))
    assert scales[1] == ((48, (grid // 4) ** 2, 1024), (48, 4, 1024), (3, 64, 1024))
