"""What is read of each layer, against the same computed plainly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.kernels.attention import IntervalMask
from mmjax.models import parameters
from mmjax.models.attention import rope_cos_sin
from mmjax.trajectory.lens import Lens, read_padded
from tests.chat import tiny_models

CONFIG = tiny_models.language_model(layers=5)
TOKENS = np.random.default_rng(0).integers(0, CONFIG.decoder.vocabulary, 20).astype(np.int32)


def made(config=CONFIG):
    params = {path: jnp.asarray(value) for path, value in tiny_models.draw(config).items()}
    return parameters.abstract(config)[0], params


@pytest.fixture(scope="module")
def model_def():
    return made()[0]


@pytest.fixture(scope="module")
def params():
    return made()[1]


@pytest.fixture(scope="module")
def states(model_def, params):
    """After each block [layers, T, D], one block after the other."""
    decoder = model_def.merge(params).decoder
    graph, stacked = nnx.split(decoder.layers)
    x = decoder.embed_tokens(TOKENS[None])
    mask, cos_sin = (
        IntervalMask.from_segments(jnp.ones((1, 20), jnp.int32)),
        rope_cos_sin(jnp.arange(20)[None], 8, 10_000.0, None),
    )
    found = []
    for index in range(5):
        block = nnx.merge(graph, jax.tree.map(lambda array, index=index: array[index], stacked))
        x, _ = block(x, cos_sin, mask, None, None)
        found.append(x[0])
    return np.stack(found)


@pytest.fixture(scope="module")
def scores(model_def, params, states):
    """Log-probabilities [layers, T, V]."""
    decoder = model_def.merge(params).decoder
    return np.asarray(
        jax.nn.log_softmax(decoder.logits(decoder.norm(jnp.asarray(states)))), np.float64
    )


def test_hidden_states_are_those_of_a_plain_loop(model_def, params, states):
    found = model_def.merge(params).hidden_states(TOKENS[None])
    assert found.shape == (5, 1, 20, 16)
    np.testing.assert_allclose(found[:, 0], states, rtol=1e-5, atol=1e-5)


def test_the_last_of_them_is_what_the_model_predicts_from(model_def, params):
    model = model_def.merge(params)
    np.testing.assert_array_equal(
        model.decoder.logits(model.decoder.norm(model.hidden_states(TOKENS[None])[-1])),
        model(TOKENS[None]),
    )


def test_a_decoder_in_several_stacks_has_the_states_of_all_of_them(params):
    """Of five blocks, the second to the fourth are removed but for one: the states are those of a decoder of these three."""
    chosen = {
        "decoder/kept_layers/0/": [0],
        "decoder/translators/0/": [3],
        "decoder/kept_layers/1/": [4],
        "decoder/layers/": [0, 3, 4],
    }

    def states(config):
        model_def, shapes = parameters.abstract(config)
        return model_def.merge({path: of_path(path) for path in shapes}).hidden_states(TOKENS[None])

    def of_path(path):
        stack = next((stack for stack in chosen if path.startswith(stack)), None)
        if stack is None:
            return params[path]
        return params["decoder/layers/" + path.removeprefix(stack).removeprefix("layers/")][
            np.array(chosen[stack])
        ]

    found = states(tiny_models.language_model(layers=5, replaced_layers=((1, 4),)))
    assert found.shape == (3, 1, 20, 16)
    np.testing.assert_allclose(
        found, states(tiny_models.language_model(layers=3)), rtol=1e-5, atol=1e-5
    )


def test_log_probabilities_of_the_tokens_that_follow(model_def, params, scores):
    found = Lens(model_def, params, "positions", 20).read(TOKENS)
    wanted = np.take_along_axis(
        scores[:, :-1], np.broadcast_to(TOKENS[None, 1:, None], (5, 19, 1)), axis=2
    )[..., 0]
    assert found.shape == (5, 19)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_last_layer_is_normed_once(model_def, params):
    """It is what the model itself says."""
    found = Lens(model_def, params, "positions", 20).read(TOKENS)[-1]
    model = np.asarray(jax.nn.log_softmax(model_def.merge(params)(TOKENS[None])[0]))
    np.testing.assert_allclose(found, model[np.arange(19), TOKENS[1:]], rtol=1e-4, atol=1e-5)


def test_divergence_over_the_vocabulary(model_def, params, scores):
    found = Lens(model_def, params, "vocabulary", 20).read(TOKENS)
    wanted = (np.exp(scores) * (scores - scores[-1])).sum(axis=-1)[:, :-1]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    assert (found[-1] == 0).all()
    assert (found[:-1] > 0).all()


@pytest.mark.parametrize("measure", ["positions", "vocabulary"])
def test_padding_changes_nothing(model_def, params, measure):
    """However long it is, whatever stands in it, and however the row is cut into chunks."""
    plain = np.asarray(read_padded(model_def, measure, params, TOKENS, 20))[:, :19]
    for length in (21, 32, 256):
        row = np.full(length, 7, np.int32)
        row[:20] = TOKENS
        padded = np.asarray(read_padded(model_def, measure, params, row, 20))[:, :19]
        np.testing.assert_allclose(padded, plain, rtol=1e-4, atol=1e-4)


def test_few_lengths_are_compiled(model_def, params):
    lens = Lens(model_def, params, "positions", 300)
    assert {lens.padded(count) for count in range(3, 301)} == {32, 64, 128, 256, 320}
    assert all(lens.padded(count) >= count for count in range(3, 301))
    assert {Lens(model_def, params, "positions", 9).padded(count) for count in range(3, 10)} == {32}


def test_no_array_of_all_scores_exists():
    """Neither [layers, T, V] nor [T, V], in any order; the last of 512 positions stand in chunks of 128."""
    config = dataclasses.replace(
        CONFIG, decoder=dataclasses.replace(CONFIG.decoder, vocabulary=1000)
    )
    model_def, shapes = parameters.abstract(config)
    row = jax.ShapeDtypeStruct((512,), jnp.int32)
    for measure in ("positions", "vocabulary"):
        text = read_padded.lower(
            model_def, measure, shapes, row, jax.ShapeDtypeStruct((), jnp.int32)
        ).as_text()
        assert "128x1000x" in text
        assert "512x1000x" not in text
        assert "5x128x1000x" not in text
        assert "4x128x1000x" not in text
