"""The model as a whole: what a token may depend on, and what must not change a number."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.kernels.attention import IntervalMask
from mmjax.models import parameters
from mmjax.models.config import LoRAConfig
from mmjax.models.connectors.linear import LinearConfig
from mmjax.models.decoder import KVCache

VISUAL = 6
FIRST, SECOND = [3, 4, 5], [6, 7, 8, 9]


def logits_of(model, row):
    return compiled(*parameters.split(model), row)


@functools.partial(jax.jit, static_argnums=0)
def compiled(model_def, params, row):
    return model_def.merge(params)(row)


def test_questions_that_share_a_image_get_the_logits_each_gets_alone(make_vlm, make_row):
    model = make_vlm()
    packed, first, second = (
        logits_of(model, make_row(questions))[0]
        for questions in ([FIRST, SECOND], [FIRST], [SECOND])
    )
    np.testing.assert_allclose(packed[VISUAL : VISUAL + 3], first[VISUAL : VISUAL + 3], atol=1e-5)
    np.testing.assert_allclose(
        packed[VISUAL + 3 : VISUAL + 7], second[VISUAL : VISUAL + 4], atol=1e-5
    )


def test_an_answer_depends_on_the_image_and_on_its_own_question_only(make_vlm, make_row):
    model = make_vlm()
    row = make_row([FIRST, SECOND])
    logits = logits_of(model, row)[0]
    other_image = logits_of(model, make_row([FIRST, SECOND], seed=1))[0]
    other_first = logits_of(model, make_row([[9, 9, 9], SECOND]))[0]
    last = VISUAL + 6
    assert np.abs(logits[last] - other_image[last]).max() > 1e-3
    np.testing.assert_array_equal(logits[last], other_first[last])


def test_a_row_of_text_alone_ignores_the_empty_image_slot(make_vlm, make_row):
    model = make_vlm()
    row, other = (make_row([FIRST, SECOND], image=False, seed=seed) for seed in (0, 1))
    logits = logits_of(model, row)
    np.testing.assert_array_equal(logits, logits_of(model, other))
    assert np.all(np.isfinite(logits))


def test_rows_without_image_slots_are_rows_with_an_empty_one(make_vlm, make_row):
    model, slot = make_vlm(), make_row([FIRST, SECOND], image=False)
    none = dataclasses.replace(slot, images=slot.images[:, :0], image_mask=slot.image_mask[:, :0])
    np.testing.assert_allclose(logits_of(model, none), logits_of(model, slot), atol=1e-6)
    logits, targets = jax.eval_shape(model.supervised_logits, none)
    assert logits.shape[:2] == targets.shape == none.tokens.shape
    found = gradients(*parameters.split(model), none)
    assert not any(
        np.any(value) for path, value in found.items() if not path.startswith("decoder/")
    )
    assert np.any(found["decoder/embedding"])


def test_supervised_logits_are_the_logits_at_the_targets(make_vlm, make_row):
    model, row = make_vlm(), make_row([FIRST, SECOND])
    logits, targets = jax.jit(lambda row: model.supervised_logits(row))(row)
    assert targets.shape == (1, 24 - VISUAL)
    where = np.flatnonzero(row.targets[0] >= 0)
    np.testing.assert_array_equal(targets[0, : len(where)], row.targets[0, where])
    assert np.all(targets[0, len(where) :] == -1)
    np.testing.assert_allclose(logits[0, : len(where)], logits_of(model, row)[0, where], atol=1e-6)


def test_decoding_with_a_cache_gives_the_logits_of_the_whole_row(make_vlm):
    """Two rows of different lengths: prefill on padded prompts, then token by token, each row at slots of its own."""
    decoder = make_vlm().decoder
    decoder_def, params = parameters.split(decoder)

    @jax.jit
    def read(params, tokens, positions, mask, cache=None):
        decoder = decoder_def.merge(params)
        hidden, cache = decoder(decoder.embed_tokens(tokens), positions, mask, cache)
        return decoder.logits(hidden), cache

    tokens = jnp.array([[3, 4, 5, 6, 7, 8], [9, 8, 7, 6, 5, 4]])
    lengths, slots = jnp.array([3, 2]), 10
    positions = jnp.arange(6)[None].repeat(2, 0)
    everywhere = jnp.ones((2, 6), jnp.int32)
    wanted, _ = read(params, tokens, positions, IntervalMask.from_segments(everywhere))

    cache = KVCache.empty(decoder.config, 2, slots, jnp.dtype("float32"))

    def end(first, count):
        return first[:, None] + 1 + jnp.arange(count)

    mask = IntervalMask(jnp.zeros((2, 3), jnp.int32), end(cache.length, 3))
    prompt, cache = read(params, tokens[:, :3], positions[:, :3], mask, cache)
    cache = dataclasses.replace(cache, length=lengths)
    np.testing.assert_allclose(prompt[0, 2], wanted[0, 2], atol=1e-5)
    for _ in range(3):
        at = cache.length[:, None]
        new = jnp.take_along_axis(tokens, at, axis=1)
        mask = IntervalMask(jnp.zeros((2, 1), jnp.int32), end(cache.length, 1))
        got, cache = read(params, new, at, mask, cache)
        full = jnp.take_along_axis(wanted, at[..., None], axis=1)
        np.testing.assert_allclose(got, full, atol=1e-5)
        cache = dataclasses.replace(cache, length=cache.length + 1)


def gradients(model_def, params, row):
    def loss(params):
        logits, targets = model_def.merge(params).supervised_logits(row)
        picked = jnp.take_along_axis(
            jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[..., None], axis=-1
        )[..., 0]
        return -jnp.sum(jnp.where(targets >= 0, picked, 0))

    return jax.jit(jax.grad(loss))(params)


@pytest.fixture(scope="module")
def plain_gradients(make_vlm, make_row):
    return gradients(*parameters.split(make_vlm()), make_row([FIRST, SECOND]))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"remat": "dots"}, marks=pytest.mark.slow),
        pytest.param({"remat": "full"}, marks=pytest.mark.slow),
        pytest.param({"unroll": 3}, marks=pytest.mark.slow),
        {"remat": "full", "unroll": 3},
    ],
)
def test_how_layers_are_run_changes_no_gradient(
    make_vlm, make_row, config, plain_gradients, change
):
    model_def, _ = parameters.abstract(dataclasses.replace(config, **change))
    _, params = parameters.split(make_vlm())
    wanted, got = plain_gradients, gradients(model_def, params, make_row([FIRST, SECOND]))
    assert wanted.keys() == got.keys()
    for path in wanted:
        np.testing.assert_allclose(got[path], wanted[path], atol=2e-5, rtol=1e-4, err_msg=path)


def test_every_parameter_has_a_gradient(plain_gradients):
    for path, gradient in plain_gradients.items():
        assert np.any(gradient != 0), path


@pytest.mark.parametrize("image", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_lora_changes_nothing_until_b_is_trained(make_row, config, image):
    row, plain = make_row([FIRST, SECOND], image=image), config
    if not image:
        plain = dataclasses.replace(config, connector=LinearConfig("linear", (1,)))
    lora = dataclasses.replace(plain, lora=LoRAConfig(rank=2, alpha=4.0))
    model_def, _ = parameters.abstract(lora)
    params = parameters.initialize(lora, jax.random.key(0))
    without = {path: value for path, value in params.items() if "lora" not in path}
    wanted = compiled(parameters.abstract(plain)[0], without, row)
    np.testing.assert_allclose(compiled(model_def, params, row), wanted, atol=1e-6)
    trained = {
        path: value + 0.1 if path.endswith("lora_b") else value for path, value in params.items()
    }
    assert np.abs(compiled(model_def, trained, row) - wanted).max() > 1e-3


def test_bfloat16_computes_low_and_keeps_parameters_and_logits_high(make_vlm, make_row, config):
    row, model = make_row([FIRST, SECOND]), make_vlm()
    low_def, shapes = parameters.abstract(dataclasses.replace(config, compute_dtype="bfloat16"))
    assert {shape.dtype for shape in shapes.values()} == {jnp.dtype("float32")}
    low = low_def.merge(parameters.split(model)[1])
    assert jax.eval_shape(low.encode_images, row.images).dtype == jnp.bfloat16
    logits = logits_of(low, row)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, logits_of(model, row), atol=0.3)
