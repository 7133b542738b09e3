import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.errors import InputError
from mmjax.recipe.recipe import OptimizerConfig, ParameterGroup
from mmjax.training.state import Optimizer, global_norm, norms, squared_norms, weight_decay

SHAPES = {
    "vision/class_token": (4,),
    "vision/layers/norm_mlp/bias": (3, 4),
    "vision/layers/mlp/gain": (3, 4),  # a stack of vectors, whatever its name
    "vision/layers/mlp/up/kernel": (3, 4, 5),
    "decoder/embedding": (6, 4),
    "decoder/norm/scale": (4,),
}
CONFIG = OptimizerConfig(learning_rate=0.1, schedule="constant", weight_decay=0.3, clip_norm=None)


def random_params(seed):
    random = np.random.default_rng(seed)
    return {
        path: jnp.asarray(random.normal(size=shape), jnp.float32) for path, shape in SHAPES.items()
    }


def run(config, steps=3, total=10, scale=1.0):
    chosen = Optimizer(config, total)
    params = random_params(0)
    state = chosen.init(params)
    for step in range(steps):
        gradient = {path: scale * value for path, value in random_params(step + 1).items()}
        params, state = jax.jit(chosen.update)(gradient, state, params, step)
    return params, state


def reference(transform, steps=3, scale=1.0):
    params = random_params(0)
    state = transform.init(params)
    for step in range(steps):
        gradient = {path: scale * value for path, value in random_params(step + 1).items()}
        updates, state = transform.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(left, right, rtol=1e-5):
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_allclose(left[path], right[path], rtol=rtol, atol=1e-6, err_msg=path)


DECAYED = {path: path in ("vision/layers/mlp/up/kernel", "decoder/embedding") for path in SHAPES}


def test_it_is_adamw_with_no_decay_on_vectors():
    found, _ = run(CONFIG)
    assert_close(found, reference(optax.adamw(0.1, weight_decay=0.3, mask=DECAYED)))


def test_clipping_is_by_the_global_norm():
    # Gradients of different sizes: Adam alone would undo a common scale.
    clip = dataclasses.replace(CONFIG, clip_norm=0.5, epsilon=0.1)
    found, _ = run(clip, scale=2.0)
    expected = reference(
        optax.chain(
            optax.clip_by_global_norm(0.5),
            optax.adamw(0.1, eps=0.1, weight_decay=0.3, mask=DECAYED),
        ),
        scale=2.0,
    )
    assert_close(found, expected)
    unclipped, _ = run(dataclasses.replace(clip, clip_norm=None), scale=2.0)
    assert not np.allclose(found["decoder/embedding"], unclipped["decoder/embedding"], rtol=1e-3)


def test_a_gradient_within_the_bound_is_left_alone():
    small, _ = run(dataclasses.replace(CONFIG, clip_norm=1.0), scale=1e-3)
    assert_close(small, run(CONFIG, scale=1e-3)[0])


def test_a_gradient_of_zero_is_no_division_by_zero():
    params, _ = run(dataclasses.replace(CONFIG, clip_norm=1.0), scale=0.0)
    assert all(np.isfinite(value).all() for value in params.values())


def test_the_first_matching_group_decides():
    groups = (
        ParameterGroup("decoder/embedding", learning_rate_scale=0.0),
        ParameterGroup("decoder/*", learning_rate_scale=5.0),
        ParameterGroup("vision/*/kernel", learning_rate_scale=0.5, weight_decay=0.0),
    )
    found, _ = run(dataclasses.replace(CONFIG, groups=groups))
    np.testing.assert_array_equal(found["decoder/embedding"], random_params(0)["decoder/embedding"])
    assert_close(
        {"x": found["decoder/norm/scale"]},
        {"x": reference(optax.adamw(0.5, weight_decay=0.0))["decoder/norm/scale"]},
    )
    halved = reference(optax.adamw(0.05, weight_decay=0.0))
    assert_close(
        {"x": found["vision/layers/mlp/up/kernel"]}, {"x": halved["vision/layers/mlp/up/kernel"]}
    )
    untouched = reference(optax.adamw(0.1, weight_decay=0.0))
    assert_close({"x": found["vision/class_token"]}, {"x": untouched["vision/class_token"]})


def test_a_groups_decay_never_reaches_a_vector():
    group = ParameterGroup("*", weight_decay=0.7)
    found = {
        path: weight_decay(path, value, CONFIG, group) for path, value in random_params(0).items()
    }
    assert found == {path: 0.7 if decayed else 0.0 for path, decayed in DECAYED.items()}


def test_a_group_that_matches_nothing_is_refused():
    chosen = Optimizer(dataclasses.replace(CONFIG, groups=(ParameterGroup("visoin/*"),)), 10)
    with pytest.raises(InputError, match=r"'visoin/\*' matches no trainable parameter"):
        chosen.init(random_params(0))


def test_the_schedule():
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=4, final_scale=0.1)
    rates = [float(Optimizer(config, 12).learning_rate(step)) for step in range(14)]
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates[8] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))  # half way between warm-up and end
    assert rates[12:] == pytest.approx([0.2, 0.2])
    assert all(np.diff(rates[3:]) <= 0)
    constant = Optimizer(dataclasses.replace(config, schedule="constant"), 12)
    assert [float(constant.learning_rate(step)) for step in (0, 3, 4, 11)] == pytest.approx(
        [0.5, 2.0, 2.0, 2.0]
    )


def test_the_schedule_follows_optax_after_warm_up():
    config = OptimizerConfig(learning_rate=0.3, warmup_steps=5, final_scale=0.2)
    expected = optax.warmup_cosine_decay_schedule(0.0, 0.3, 5, 50, end_value=0.06)
    for step in (5, 6, 20, 49, 50, 60):
        assert float(Optimizer(config, 50).learning_rate(step)) == pytest.approx(
            float(expected(step)), rel=1e-5
        )


def test_norms_by_module():
    params = random_params(0)
    found = {module: float(value) for module, value in norms(squared_norms(params)).items()}
    flat = {
        m: np.concatenate([np.ravel(v) for path, v in params.items() if path.startswith(m + "/")])
        for m in ("vision", "decoder")
    }
    assert found == pytest.approx(
        {module: np.linalg.norm(values) for module, values in flat.items()}, rel=1e-6
    )
    together = global_norm(squared_norms(params).values())
    assert float(together) == pytest.approx(float(optax.tree.norm(params)), rel=1e-6)


def test_norms_of_half_precision_are_summed_in_float32():
    value = 1.0078125  # exact in bfloat16; its square is not
    params = {"decoder/embedding": jnp.full((64, 64), value, jnp.bfloat16)}
    assert float(norms(squared_norms(params))["decoder"]) == pytest.approx(64 * value, rel=1e-6)
