"""The Chain-of-Sight resampler against one in plain PyTorch, written window by window."""

import functools

import jax
import jax.numpy as jnp

from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.resampler import ResamplerConfig

CONFIG = VLMConfig(
    vision=ViTConfig(image_size=8, patch_size=1, width=16, layers=2, heads=1, mlp_width=4),
    connector=ResamplerConfig(
        "resampler", (8, 4, 2), (3, 8, 16), (1, 2), width=16, head_dim=4, mlp_width=24
    ),
    decoder=DecoderConfig(
        vocabulary=4, width=12, layers=1, heads=1, kv_heads=1, head_dim=4, mlp_width=4
    ),
    compute_dtype="float32",
)


@jax.jit
@functools.partial(jax.grad, has_aux=True)
def run(params, levels, probe):
    """The gradient of a fixed random sum of the tokens, and the tokens."""
    tokens = parameters.abstract(CONFIG)[0].merge(params).connector(levels)
    return jnp.sum(tokens * probe), tokens


def test_tokens_and_gradients(reference, translated, complete, close, close_trees):
    theirs = reference("resampler")
    params = complete(CONFIG, translated(theirs, "weight", "connector/"))
    gradient, tokens = run(
        params, tuple(jnp.asarray(theirs["features"])), jnp.asarray(theirs["probe"])
    )
    close(tokens, theirs["tokens"])
    close_trees(gradient, translated(theirs, "gradient", "connector/"))
