"""The mixture of experts against a loop over experts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, LanguageModelConfig
from mmjax.models.moe import MoE

WIDTH, HIDDEN, EXPERTS, CHOSEN = 6, 10, 4, 2


@pytest.fixture(scope="module")
def moe() -> MoE:
    return MoE(
        WIDTH, HIDDEN, EXPERTS, CHOSEN, std=0.5, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0)
    )


@pytest.fixture(scope="module")
def x() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, 5, WIDTH))


def dense(params, x):
    """Every expert on every token, weighed by the softmax over the chosen scores."""
    scores = x @ params["router/kernel"]
    kept = jnp.where(scores >= jnp.sort(scores)[..., -CHOSEN, None], scores, -jnp.inf)
    weights = jax.nn.softmax(kept)
    gate, up = (jnp.einsum("btd,edf->btef", x, params[name]) for name in ("gate", "up"))
    return jnp.einsum("btef,efd,bte->btd", jax.nn.silu(gate) * up, params["down"], weights)


def test_values_and_gradients_are_those_of_the_loop(moe, x):
    model_def, params = parameters.split(moe)
    weigh = jax.random.normal(jax.random.key(2), x.shape)
    ours = jax.jit(
        jax.value_and_grad(
            lambda params, x: (model_def.merge(params)(x) * weigh).sum(), argnums=(0, 1)
        )
    )
    theirs = jax.value_and_grad(lambda params, x: (dense(params, x) * weigh).sum(), argnums=(0, 1))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
        ours(params, x),
        theirs(params, x),
    )


def test_no_token_is_dropped_when_all_want_the_same_expert(moe, x):
    model_def, params = parameters.split(moe)
    one = params | {
        "router/kernel": jnp.zeros((WIDTH, EXPERTS)).at[:, 2].set(0.0)
    }  # equal scores: the first experts, for every token
    np.testing.assert_allclose(
        model_def.merge(one)(x)[0, 0], model_def.merge(one)(x[:1, :1])[0, 0], rtol=1e-5
    )
    assert (np.abs(model_def.merge(one)(x)) > 0).all()


def test_the_weights_of_a_token_sum_to_one(moe, x):
    weights, experts = moe.route(x.reshape(-1, WIDTH))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
    assert ((experts >= 0) & (experts < EXPERTS)).all()


def test_a_decoder_with_one_expert_is_the_one_with_its_mlp():
    plain = DecoderConfig(
        vocabulary=12,
        width=8,
        layers=2,
        heads=2,
        kv_heads=1,
        head_dim=4,
        mlp_width=16,
        weight_std=0.3,
    )
    config = LanguageModelConfig(
        dataclasses.replace(plain, experts=1, experts_per_token=1), compute_dtype="float32"
    )
    params = parameters.initialize(config, jax.random.key(0))
    mlp = {
        f"decoder/layers/mlp/{name}": params.pop(f"decoder/layers/mlp/{name}")
        for name in ("gate", "up", "down")
    }
    router = params.pop("decoder/layers/mlp/router/kernel")
    tokens = jnp.arange(10)[None]
    plain_params = params | {f"{path}/kernel": value[:, 0] for path, value in mlp.items()}
    ours = parameters.abstract(config)[0].merge(
        params | mlp | {"decoder/layers/mlp/router/kernel": router}
    )(tokens)
    theirs = parameters.abstract(LanguageModelConfig(plain, compute_dtype="float32"))[0].merge(
        plain_params
    )(tokens)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
