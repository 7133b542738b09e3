"""Decoders and encoders on their own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from mmjax.models import parameters
from mmjax.models.config import LanguageModelConfig, VisionEncoderConfig


@pytest.fixture(scope="module")
def make_encoder(config):
    """An encoder with changed fields; the same one is made once and shared."""

    @functools.cache
    def make(**changes):
        whole = VisionEncoderConfig(
            dataclasses.replace(config.vision, **changes), compute_dtype="float32"
        )
        return parameters.abstract(whole)[0].merge(parameters.initialize(whole, jax.random.key(0)))

    return make


def test_parameters_have_the_paths_that_they_have_in_a_whole_model(config):
    whole = set(parameters.abstract(config)[1])
    for part, own in (
        ("decoder", LanguageModelConfig(config.decoder)),
        ("vision", VisionEncoderConfig(config.vision)),
    ):
        assert set(parameters.abstract(own)[1]) == {
            path for path in whole if path.startswith(f"{part}/")
        }


def test_padding_at_the_end_of_a_row_changes_nothing(config):
    own = LanguageModelConfig(config.decoder, compute_dtype="float32")
    model = parameters.abstract(own)[0].merge(parameters.initialize(own, jax.random.key(0)))
    tokens = jnp.array([[3, 4, 5, 6]])
    padded = model(jnp.array([[3, 4, 5, 6, 9, 9]]), jnp.array([[1, 1, 1, 1, 0, 0]]))
    assert model(tokens).dtype == jnp.float32
    np.testing.assert_allclose(padded[:, :4], model(tokens), rtol=1e-5, atol=1e-6)


def test_hidden_states_have_the_class_token_and_any_number_of_patches(make_encoder):
    encoder, pixels = make_encoder(), np.zeros((2, 16, 16, 3), np.uint8)
    states, last = jax.jit(lambda pixels: (encoder(pixels, layers=(0, 2, 3)), encoder(pixels)[0]))(
        pixels
    )
    assert [state.shape for state in states] == [(2, 17, 16)] * 3
    np.testing.assert_allclose(last, states[-1], atol=1e-6)

    def shape(height, width):
        return jax.eval_shape(encoder, np.zeros((1, height, width, 3), np.uint8))[0].shape

    assert shape(12, 24) == (1, 1 + 3 * 6, 16)
    assert shape(19, 17) == (1, 17, 16)  # what is no whole patch is not read


def test_interpolated_positions_are_those_of_the_table_where_the_sizes_agree(make_encoder):
    encoder = make_encoder()
    wide = encoder.vision._positions(4, 8)
    assert wide.shape == (1 + 32, 16)
    np.testing.assert_array_equal(encoder.vision._positions(4, 4), encoder.vision.position[...])
    np.testing.assert_array_equal(wide[0], encoder.vision.position[...][0])


@pytest.mark.parametrize("layers", [(), (4,), (-1, 2), (3, 1)])
def test_layers_that_are_not_there_are_refused(make_encoder, layers):
    with pytest.raises(ValueError, match="from 0 to 3 that do not decrease"):
        make_encoder()(np.zeros((1, 16, 16, 3), np.uint8), layers)


def test_one_vector_for_a_image(make_encoder):
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    encoder = make_encoder(final_norm=True)
    pooled, last = jax.jit(lambda pixels: (encoder.pooled(pixels), encoder.last(pixels)))(pixels)
    np.testing.assert_allclose(pooled, last[:, 0], atol=1e-6)
    head = make_encoder(final_norm=True, pooling_head=True, class_token=False)
    assert jax.eval_shape(head.pooled, pixels).shape == (2, 16)
    with pytest.raises(ValueError, match="neither a pooling head nor a class token"):
        make_encoder(class_token=False).pooled(pixels)


def test_layer_scale_scales_what_a_block_adds(make_encoder):
    encoder, pixels = make_encoder(layer_scale=True), np.full((1, 16, 16, 3), 200, np.uint8)
    model_def, params = parameters.split(encoder)
    silent = {
        path: jnp.zeros_like(value) if "/scale_" in path else value
        for path, value in params.items()
    }
    states = model_def.merge(silent)(pixels, (0, 3))
    np.testing.assert_array_equal(states[0], states[1])


def test_pixels_with_the_channels_first_are_refused(make_encoder):
    with pytest.raises(
        (ValueError, jaxtyping.TypeCheckError)
    ):  # in tests, annotations are checked before the sentence is reached
        make_encoder()(np.zeros((1, 3, 16, 16), np.float32))
