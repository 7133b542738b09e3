import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.training.metrics import TokenSums, cross_entropy


def example(seed=0, rows=(3, 5), vocabulary=7):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(*rows, vocabulary)).astype(np.float32) * 4
    targets = random.integers(-1, vocabulary, rows).astype(np.int32)
    return jnp.asarray(logits), jnp.asarray(targets)


def test_sums_are_those_of_the_supervised_positions():
    logits, targets = example()
    kept = np.asarray(targets) >= 0
    expected = optax.softmax_cross_entropy_with_integer_labels(logits[kept], targets[kept]).sum()
    sums = cross_entropy(logits, targets)
    assert 0 < kept.sum() < kept.size
    assert float(sums.loss) == pytest.approx(float(expected), rel=1e-6)
    assert int(sums.targets) == kept.sum()
    assert int(sums.correct) == (np.asarray(logits).argmax(-1) == np.asarray(targets)).sum()


def test_the_gradient_is_softmax_minus_target_and_zero_where_ignored():
    logits, targets = example()
    gradient = jax.grad(lambda x: cross_entropy(x, targets).loss)(logits)
    expected = jax.nn.softmax(logits) - jax.nn.one_hot(targets, logits.shape[-1])
    expected = jnp.where((targets >= 0)[..., None], expected, 0)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_large_logits_stay_finite():
    logits, targets = jnp.asarray([[1e4, -1e4, 0.0]]), jnp.asarray([1])
    loss, gradient = jax.value_and_grad(lambda x: cross_entropy(x, targets).loss)(logits)
    assert float(loss) == 2e4
    np.testing.assert_array_equal(gradient, [[1.0, -1.0, 0.0]])


def test_half_precision_logits_are_summed_in_float32():
    logits, targets = example(rows=(64, 64), vocabulary=16)
    rounded = logits.astype(jnp.bfloat16)
    sums = cross_entropy(rounded, targets)
    assert sums.loss.dtype == jnp.float32
    assert float(sums.loss) == pytest.approx(
        float(cross_entropy(rounded.astype(jnp.float32), targets).loss), rel=1e-7
    )


@pytest.mark.parametrize("target, correct", [(0, 1), (1, 0)])
def test_a_tie_goes_to_the_first_so_that_constant_logits_are_not_all_correct(target, correct):
    assert int(cross_entropy(jnp.zeros((4, 9)), jnp.full(4, target)).correct) == 4 * correct


def test_logits_that_are_not_numbers_show_in_the_loss():
    assert np.isnan(float(cross_entropy(jnp.full((2, 3), jnp.nan), jnp.asarray([0, 2])).loss))


def test_no_target_gives_zero_and_a_zero_gradient():
    logits, _ = example()
    nothing = jnp.full(logits.shape[:-1], -1)
    sums = cross_entropy(logits, nothing)
    assert (float(sums.loss), int(sums.targets), int(sums.correct)) == (0.0, 0, 0)
    assert not np.any(jax.grad(lambda x: cross_entropy(x, nothing).loss)(logits))


def test_sums_add_up_over_parts():
    logits, targets = example(rows=(4, 5))
    whole = cross_entropy(logits, targets)
    parts = (
        TokenSums.zero()
        + cross_entropy(logits[:1], targets[:1])
        + cross_entropy(logits[1:], targets[1:])
    )
    assert float(parts.loss) == pytest.approx(float(whole.loss), rel=1e-6)
    assert (int(parts.targets), int(parts.correct)) == (int(whole.targets), int(whole.correct))
