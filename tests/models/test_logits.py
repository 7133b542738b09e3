"""The head of the decoder under a low compute dtype: logits are float32 sums, and the backward pass stays in the compute dtype."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from mmjax.models import parameters
from mmjax.models.config import LoRAConfig
from mmjax.models.layers import matmul_float32


@pytest.fixture(params=["untied", "tied", "untied with LoRA"], scope="module")
def decoder(request, config):
    """Of drawn parameters; a LoRA's B is zero."""
    changed = dataclasses.replace(config.decoder, tie_word_embeddings=request.param == "tied")
    lora = (
        LoRAConfig(rank=2, targets=("decoder/lm_head",))
        if "LoRA" in request.param
        else LoRAConfig()
    )
    model_def, shapes = parameters.abstract(
        dataclasses.replace(config, decoder=changed, lora=lora, compute_dtype="bfloat16")
    )
    rng = np.random.default_rng(0)
    params = {
        path: jnp.asarray(
            rng.normal(0, 0.0 if path.endswith("lora_b") else 0.2, leaf.shape), "float32"
        )
        for path, leaf in shapes.items()
    }
    return model_def.merge(params).decoder


def states(decoder, rows=2):
    return jax.random.normal(jax.random.key(5), (rows, 3, decoder.config.width)).astype(
        jnp.bfloat16
    )


def test_logits_are_not_rounded_to_the_compute_dtype(decoder):
    hidden = states(decoder)
    logits = decoder.logits(hidden)
    assert logits.dtype == jnp.float32 and logits.shape == (2, 3, decoder.config.vocabulary)
    kernel = (
        decoder.embedding[...].T
        if decoder.config.tie_word_embeddings
        else decoder.lm_head.kernel[...]
    )
    # What was rounded before the product.
    low = kernel.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(logits, hidden.astype(jnp.float32) @ low, atol=1e-5, rtol=1e-5)
    assert np.any(logits != logits.astype(jnp.bfloat16).astype(jnp.float32))


def test_no_product_mixes_dtypes_forward_or_backward(decoder):
    """A product of float32 with bfloat16 arrays runs at the rate of float32, several times slower on an accelerator."""
    model_def, params = parameters.split(decoder)

    def loss(params, hidden):
        return jnp.sum(model_def.merge(params).logits(hidden) ** 2)

    operands = [
        tuple(variable.aval.dtype for variable in equation.invars)
        for equation in equations(
            jax.make_jaxpr(jax.grad(loss, (0, 1)))(params, states(decoder)).jaxpr
        )
        if equation.primitive.name == "dot_general"
    ]
    assert len(operands) >= 3 and set(operands) == {(jnp.dtype("bfloat16"),) * 2}


def equations(jaxpr):
    """Those of a program and of all that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_the_gradient_of_the_product_is_that_of_a_plain_one():
    rows, kernel, weight = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(5, 4), (4, 3), (5, 3)])
    )
    got = jax.grad(lambda *x: jnp.sum(weight * matmul_float32(*x)), (0, 1))(rows, kernel)
    wanted = jax.grad(lambda a, b: jnp.sum(weight * (a @ b)), (0, 1))(rows, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), got, wanted)
