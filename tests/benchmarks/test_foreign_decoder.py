"""A decoder with another embedding space computes the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foreign_decoder import foreign

from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, LanguageModelConfig


@pytest.mark.parametrize("tied", [True, False])
def test_every_logit_is_the_same_and_no_embedding_is(tied):
    decoder = DecoderConfig(
        40, 16, 3, 4, 2, 4, 24, tie_word_embeddings=tied, weight_std=0.3, embedding_std=1.0
    )
    config = LanguageModelConfig(decoder, compute_dtype="float32")
    params = parameters.initialize(config, jax.random.key(0))
    random = np.random.default_rng(1)
    params = {
        path: value + np.float32(0.3) * random.standard_normal(value.shape, np.float32)
        for path, value in params.items()
    }
    moved = foreign(params, config, seed=0)
    model_def = parameters.abstract(config)[0]
    logits = jax.jit(lambda params: model_def.merge(params)(jnp.arange(12)[None]))
    np.testing.assert_allclose(logits(moved), logits(params), atol=1e-4)
    for path, value in params.items():
        assert not np.allclose(moved[path], value), path
