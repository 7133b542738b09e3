"""The step on a model small enough to check by hand: an embedding, a stacked layer and a head."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.errors import InputError
from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.linear import LinearConfig
from mmjax.recipe.recipe import DataConfig, OptimizerConfig, Stage
from mmjax.training.metrics import merge, summary
from mmjax.training.state import create
from mmjax.training.step import make_evaluation_step, make_train_step
from mmjax.typing import NO_TARGET, Batch

VOCABULARY, WIDTH, LENGTH, ROWS = 11, 8, 6, 8
MODEL = VLMConfig(
    vision=ViTConfig(image_size=4, patch_size=2, width=4, layers=1, heads=1, mlp_width=4),
    connector=LinearConfig(kind="linear", feature_layers=(1,)),
    decoder=DecoderConfig(
        vocabulary=VOCABULARY, width=WIDTH, layers=2, heads=1, kv_heads=1, head_dim=8, mlp_width=8
    ),
    compute_dtype="float32",
)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, schedule="constant", weight_decay=0.1)
STAGE = Stage(
    "toy", MODEL, DataConfig(sources={}, text_length=LENGTH), OPTIMIZER, steps=100, batch_size=ROWS
)


class Toy:
    """Predicts a token from the running sum of embeddings; pixels shift it, so that a NaN can enter as in a real model."""

    def __init__(self, params):
        self.params = params

    def supervised_logits(self, batch):
        p = self.params
        brightness = batch.images.astype(jnp.float32).mean(axis=(1, 2, 3, 4)) / 255
        x = (
            jnp.cumsum(p["decoder/embedding"][batch.tokens], axis=1)
            + p["vision/bias"] * brightness[:, None, None]
        )
        for kernel in p["decoder/layers/kernel"]:
            x = x + jnp.tanh(x @ kernel)
        return x @ p["decoder/lm_head/kernel"], batch.targets


class ToyStructure:
    def merge(self, params):
        return Toy(params)


def make_params(seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = {
        "decoder/embedding": (VOCABULARY, WIDTH),
        "decoder/layers/kernel": (2, WIDTH, WIDTH),
        "decoder/lm_head/kernel": (WIDTH, VOCABULARY),
        "vision/bias": (WIDTH,),
    }
    return {
        path: 0.5 * jax.random.normal(key, shape)
        for key, (path, shape) in zip(keys, shapes.items(), strict=True)
    }


def make_batch(seed=0, empty_rows=()):
    random = np.random.default_rng(seed)
    tokens = random.integers(0, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
    lengths = random.integers(1, LENGTH + 1, ROWS)  # uneven: the mean of means is another number
    targets = np.where(
        np.arange(LENGTH) < lengths[:, None],
        random.integers(0, VOCABULARY, (ROWS, LENGTH)),
        NO_TARGET,
    ).astype(np.int32)
    targets[list(empty_rows)] = NO_TARGET
    zeros = np.zeros((ROWS, LENGTH), np.int32)
    images = random.integers(0, 256, (ROWS, 1, 4, 4, 3)).astype(np.uint8)
    return Batch(
        tokens, targets, zeros + 1, zeros, zeros, images, np.ones((ROWS, 1), bool), zeros - 1
    )


@functools.cache
def make_step(**changes):
    """A stage and its step, which is compiled once."""
    stage = dataclasses.replace(STAGE, **changes)
    return stage, make_train_step(ToyStructure(), stage)


def run(batch, gradient_accumulation_steps=1, params=None, steps=1, **changes):
    stage, step = make_step(gradient_accumulation_steps=gradient_accumulation_steps, **changes)
    state = create(params or make_params(), stage, jax.random.key(0))
    for _ in range(steps):
        state, metrics = step(state, batch)
    return state, metrics


def assert_close(left, right, tolerance=1e-6):
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_allclose(
            left[path], right[path], rtol=tolerance, atol=tolerance, err_msg=path
        )


# With every second row empty, micro-batch 1 of 2 (rows 1, 3, 5, 7) has no target at all.
@pytest.mark.parametrize("empty_rows", [(), (0, 3), (1, 3, 5, 7)])
@pytest.mark.parametrize(
    "gradient_accumulation_steps", [2, 4, pytest.param(8, marks=pytest.mark.slow)]
)
def test_gradient_accumulation_steps_are_one_batch(gradient_accumulation_steps, empty_rows):
    batch = make_batch(empty_rows=empty_rows)
    (whole, whole_metrics), (parts, parts_metrics) = (
        run(batch),
        run(batch, gradient_accumulation_steps),
    )
    assert_close(whole.optimizer.mu, parts.optimizer.mu)  # a tenth of the clipped gradient
    # Adam divides by the gradient, and so magnifies the rounding of small ones.
    assert_close(whole.params, parts.params, 1e-4)
    left, right = summary(whole_metrics), summary(parts_metrics)
    assert left["gradient_norm"] > 0
    assert left == pytest.approx(right, rel=1e-5)
    assert int(parts_metrics.loss.count) == int((batch.targets != NO_TARGET).sum())


def test_the_gradient_is_of_the_mean_over_targets():
    batch, params = make_batch(), make_params()

    def mean(params):
        logits, targets = Toy(params).supervised_logits(batch)
        chosen = jnp.take_along_axis(
            jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[..., None], -1
        )[..., 0]
        return -(chosen * (targets >= 0)).sum() / (targets >= 0).sum()

    loss, gradient = jax.value_and_grad(mean)(params)
    _, metrics = run(batch, params=make_params())
    norm = np.sqrt(sum(float((value**2).sum()) for value in gradient.values()))
    found = summary(metrics)
    assert found["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert found["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    assert found["gradient_norm/vision"] == pytest.approx(
        float(jnp.linalg.norm(gradient["vision/bias"])), rel=1e-5
    )


@pytest.mark.parametrize("gradient_accumulation_steps", [1, 4])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_step(where, gradient_accumulation_steps):
    # An infinite bias makes the loss NaN. A huge head leaves the loss finite and lets the gradient norm overflow.
    params = make_params()
    if where == "loss":
        params["vision/bias"] = params["vision/bias"].at[0].set(jnp.inf)
    else:
        params["decoder/lm_head/kernel"] = params["decoder/lm_head/kernel"] * 1e25
    before = {path: np.array(value) for path, value in params.items()}
    state, metrics = run(make_batch(), gradient_accumulation_steps, params=params, steps=2)
    assert int(state.step) == 2
    for path, value in state.params.items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)
    assert int(state.optimizer.count) == 0
    assert all(not np.any(value) for value in jax.tree.leaves(state.optimizer))
    flags = {
        "loss": int(metrics.nonfinite_steps.loss),
        "gradient": int(metrics.nonfinite_steps.gradient),
    }
    assert flags == {name: int(name == where) for name in flags}
    assert int(metrics.loss.count) == 0


def test_training_goes_on_after_a_step_that_was_not_finite():
    _, step = make_step(gradient_accumulation_steps=1)
    state = create(make_params(), STAGE, jax.random.key(0))
    state, _ = step(state, make_batch(0))
    bias = state.trainable["vision/bias"]
    state, bad = step(
        dataclasses.replace(state, trainable=state.trainable | {"vision/bias": bias * jnp.nan}),
        make_batch(1),
    )
    state, good = step(
        dataclasses.replace(state, trainable=state.trainable | {"vision/bias": jnp.zeros(WIDTH)}),
        make_batch(2),
    )
    assert [int(m.nonfinite_steps.compute()) for m in (bad, good)] == [1, 0]
    assert np.isfinite(summary(good)["loss"])
    assert (int(state.step), int(state.optimizer.count)) == (3, 2)


def test_a_batch_without_targets_moves_nothing():
    _, step = make_step(gradient_accumulation_steps=1)
    state, _ = step(create(make_params(), STAGE, jax.random.key(0)), make_batch())
    before = {path: np.array(value) for path, value in state.params.items()}
    state, metrics = step(state, make_batch(empty_rows=range(ROWS)))
    assert_close(state.params, before, 0.0)
    assert int(metrics.nonfinite_steps.compute()) == 0 and int(state.step) == 2


@pytest.mark.parametrize(
    "gradient_accumulation_steps", [1, pytest.param(2, marks=pytest.mark.slow)]
)
def test_twenty_varied_batches_compile_once_and_one_of_other_shapes_once_more(
    gradient_accumulation_steps,
):
    stage = dataclasses.replace(STAGE, gradient_accumulation_steps=gradient_accumulation_steps)
    traces: list[None] = []
    step = make_train_step(ToyStructure(), stage, on_trace=lambda: traces.append(None))
    state = create(make_params(), stage, jax.random.key(0))
    for seed in range(20):
        state, _ = step(state, make_batch(seed, empty_rows=range(seed % 4)))
    assert len(traces) == 1
    step(state, jax.tree.map(lambda value: value[:4], make_batch()))
    assert len(traces) == 2


def test_training_lowers_the_loss_and_frozen_parameters_stay():
    params = make_params()
    embedding = np.array(params["decoder/embedding"])
    first, last = (
        run(
            make_batch(),
            params=make_params(),
            steps=n,
            trainable=("decoder/layers/*", "decoder/lm_head/*"),
        )
        for n in (1, 60)
    )
    assert summary(last[1])["loss"] < 0.7 * summary(first[1])["loss"]
    state = last[0]
    assert set(state.frozen) == {"decoder/embedding", "vision/bias"}
    np.testing.assert_array_equal(state.frozen["decoder/embedding"], embedding)
    assert (
        set(state.optimizer.mu)
        == set(state.optimizer.nu)
        == set(state.trainable)
        == {"decoder/layers/kernel", "decoder/lm_head/kernel"}
    )


def test_the_state_is_consumed():
    _, step = make_step(gradient_accumulation_steps=1)
    state = create(make_params(), STAGE, jax.random.key(0))
    step(state, make_batch())
    assert all(value.is_deleted() for value in state.trainable.values())


def test_frozen_matrices_are_kept_in_the_compute_dtype():
    stage = dataclasses.replace(
        STAGE,
        model=dataclasses.replace(MODEL, compute_dtype="bfloat16"),
        trainable=("decoder/lm_head/*",),
    )
    state = create(make_params(), stage, jax.random.key(0))
    assert {path: str(value.dtype) for path, value in state.params.items()} == {
        "decoder/lm_head/kernel": "float32",
        "decoder/embedding": "bfloat16",
        "decoder/layers/kernel": "bfloat16",
        "vision/bias": "float32",
    }


def test_evaluation_sums_merge_to_the_mean_over_all_targets():
    evaluate, params = make_evaluation_step(ToyStructure()), make_params()
    total = None
    logits, targets = [], []
    for seed in range(3):
        batch = make_batch(seed, empty_rows=range(2 * seed))
        found = evaluate(params, batch)
        total = found if total is None else merge(total, found)
        each = Toy(params).supervised_logits(batch)
        logits.append(each[0])
        targets.append(each[1])
    logits, targets = np.concatenate(logits), np.concatenate(targets)
    log_probabilities = np.asarray(jax.nn.log_softmax(logits))[targets >= 0]
    chosen = targets[targets >= 0]
    expected = -log_probabilities[np.arange(len(chosen)), chosen].mean()
    accuracy = (log_probabilities.argmax(-1) == chosen).mean()
    assert summary(total) == pytest.approx(
        {"loss": expected, "token_accuracy": accuracy, "perplexity": np.exp(expected)}, rel=1e-5
    )


def test_rows_that_do_not_split_are_refused():
    with pytest.raises(
        InputError, match="batch_size 8 must be divisible by gradient_accumulation_steps 3"
    ):
        make_train_step(ToyStructure(), dataclasses.replace(STAGE, gradient_accumulation_steps=3))


@pytest.mark.parametrize(
    "trainable, message", [(("decoder/layerz/*",), "decoder/layerz"), ((), "empty")]
)
def test_a_glob_that_matches_nothing_is_refused(trainable, message):
    with pytest.raises(InputError, match=message):
        create(make_params(), dataclasses.replace(STAGE, trainable=trainable), jax.random.key(0))
