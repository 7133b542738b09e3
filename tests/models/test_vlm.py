"""The model as a whole: what a token may depend on, and what must not change a number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.kernels.attention import IntervalMask
from mmjax.models import parameters
from mmjax.models.config import LoRAConfig
from mmjax.models.decoder import KVCache

VISUAL = 6
FIRST, SECOND = [3, 4, 5], [6, 7, 8, 9]


def test_questions_that_share_a_image_get_the_logits_each_gets_alone(make_vlm, make_row):
    model = make_vlm()
    packed = model(make_row([FIRST, SECOND]))[0]
    first, second = model(make_row([FIRST]))[0], model(make_row([SECOND]))[0]
    np.testing.assert_allclose(packed[VISUAL : VISUAL + 3], first[VISUAL : VISUAL + 3], atol=1e-5)
    np.testing.assert_allclose(
        packed[VISUAL + 3 : VISUAL + 7], second[VISUAL : VISUAL + 4], atol=1e-5
    )


def test_an_answer_depends_on_the_image_and_on_its_own_question_only(make_vlm, make_row):
    model = make_vlm()
    row = make_row([FIRST, SECOND])
    logits = model(row)[0]
    other_image = model(make_row([FIRST, SECOND], seed=1))[0]
    other_first = model(make_row([[9, 9, 9], SECOND]))[0]
    last = VISUAL + 6
    assert np.abs(logits[last] - other_image[last]).max() > 1e-3
    np.testing.assert_array_equal(logits[last], other_first[last])


def test_a_row_of_text_alone_ignores_the_empty_image_slot(make_vlm, make_row):
    model = make_vlm()
    row, other = (make_row([FIRST, SECOND], image=False, seed=seed) for seed in (0, 1))
    logits = model(row)
    np.testing.assert_array_equal(logits, model(other))
    assert np.all(np.isfinite(logits))


def test_rows_without_image_slots_are_rows_with_an_empty_one(make_vlm, make_row):
    model, slot = make_vlm(), make_row([FIRST, SECOND], image=False)
    none = dataclasses.replace(slot, images=slot.images[:, :0], image_mask=slot.image_mask[:, :0])
    np.testing.assert_array_equal(model(none), model(slot))
    logits, targets = model.supervised_logits(none)
    assert logits.shape[:2] == targets.shape == none.tokens.shape
    found = gradients(model, none)
    assert not any(
        np.any(value) for path, value in found.items() if not path.startswith("decoder/")
    )
    assert np.any(found["decoder/embedding"])


def test_supervised_logits_are_the_logits_at_the_targets(make_vlm, make_row):
    model, row = make_vlm(), make_row([FIRST, SECOND])
    logits, targets = model.supervised_logits(row)
    assert targets.shape == (1, 24 - VISUAL)
    where = np.flatnonzero(row.targets[0] >= 0)
    np.testing.assert_array_equal(targets[0, : len(where)], row.targets[0, where])
    assert np.all(targets[0, len(where) :] == -1)
    np.testing.assert_allclose(logits[0, : len(where)], model(row)[0, where], atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_decoding_with_a_cache_gives_the_logits_of_the_whole_row(make_vlm, make_row, config, tied):
    """Two rows of different lengths: prefill on padded prompts, then token by token, each row at slots of its own."""
    decoder = make_vlm(
        decoder=dataclasses.replace(config.decoder, tie_word_embeddings=tied)
    ).decoder
    tokens = jnp.array([[3, 4, 5, 6, 7, 8], [9, 8, 7, 6, 5, 4]])
    lengths, slots = jnp.array([3, 2]), 10
    positions = jnp.arange(6)[None].repeat(2, 0)
    everywhere = jnp.ones((2, 6), jnp.int32)
    wanted = decoder.logits(
        decoder(decoder.embed_tokens(tokens), positions, IntervalMask.from_segments(everywhere))[0]
    )

    cache = KVCache.empty(decoder.config, 2, slots, jnp.dtype("float32"))

    def end(first, count):
        return first[:, None] + 1 + jnp.arange(count)

    mask = IntervalMask(jnp.zeros((2, 3), jnp.int32), end(cache.length, 3))
    hidden, cache = decoder(decoder.embed_tokens(tokens[:, :3]), positions[:, :3], mask, cache)
    cache = dataclasses.replace(cache, length=lengths)
    np.testing.assert_allclose(decoder.logits(hidden)[0, 2], wanted[0, 2], atol=1e-5)
    for _ in range(3):
        at = cache.length[:, None]
        new = jnp.take_along_axis(tokens, at, axis=1)
        mask = IntervalMask(jnp.zeros((2, 1), jnp.int32), end(cache.length, 1))
        hidden, cache = decoder(decoder.embed_tokens(new), at, mask, cache)
        got, full = (
            decoder.logits(hidden)[:, 0],
            jnp.take_along_axis(wanted, at[..., None], axis=1)[:, 0],
        )
        np.testing.assert_allclose(got, full, atol=1e-5)
        cache = dataclasses.replace(cache, length=cache.length + 1)


def gradients(model, row):
    model_def, params = parameters.split(model)

    def loss(params):
        logits, targets = model_def.merge(params).supervised_logits(row)
        picked = jnp.take_along_axis(
            jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[..., None], axis=-1
        )[..., 0]
        return -jnp.sum(jnp.where(targets >= 0, picked, 0))

    return jax.jit(jax.grad(loss))(params)


@pytest.fixture(scope="module")
def plain_gradients(make_vlm, make_row):
    return gradients(make_vlm(), make_row([FIRST, SECOND]))


@pytest.mark.parametrize(
    "change", [{"remat": "dots"}, {"remat": "full"}, {"unroll": 3}, {"remat": "full", "unroll": 3}]
)
def test_how_layers_are_run_changes_no_gradient(make_vlm, make_row, plain_gradients, change):
    wanted, got = plain_gradients, gradients(make_vlm(**change), make_row([FIRST, SECOND]))
    assert wanted.keys() == got.keys()
    for path in wanted:
        np.testing.assert_allclose(got[path], wanted[path], atol=2e-5, rtol=1e-4, err_msg=path)


def test_every_parameter_has_a_gradient(plain_gradients):
    for path, gradient in plain_gradients.items():
        assert np.any(gradient != 0), path


def test_lora_changes_nothing_until_b_is_trained(make_vlm, make_row):
    row, lora = make_row([FIRST, SECOND]), LoRAConfig(rank=2, alpha=4.0)
    model_def, params = parameters.split(make_vlm(lora=lora))
    plain_structure, _ = parameters.split(make_vlm())
    without = {path: value for path, value in params.items() if "lora" not in path}
    wanted = plain_structure.merge(without)(row)
    np.testing.assert_array_equal(model_def.merge(params)(row), wanted)
    trained = {
        path: value + 0.1 if path.endswith("lora_b") else value for path, value in params.items()
    }
    assert np.abs(model_def.merge(trained)(row) - wanted).max() > 1e-3


def test_bfloat16_computes_low_and_keeps_parameters_and_logits_high(make_vlm, make_row):
    row = make_row([FIRST, SECOND])
    low = make_vlm(compute_dtype="bfloat16")
    assert {value.dtype for value in parameters.split(low)[1].values()} == {jnp.dtype("float32")}
    assert low.encode_images(row.images).dtype == jnp.bfloat16
    logits = low(row)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, make_vlm()(row), atol=0.3)
