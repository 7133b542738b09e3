"""The Chain-of-Sight resampler against one in plain PyTorch, written window by window."""

import jax
import jax.numpy as jnp

from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, ResamplerConfig, ViTConfig, VLMConfig

CONFIG = VLMConfig(
    vision=ViTConfig(image_size=8, patch_size=1, width=16, layers=2, heads=1, mlp_width=4),
    connector=ResamplerConfig("resampler", (8, 4, 2), (3, 8, 16), (1, 2), width=16, head_dim=4, mlp_width=24),
    decoder=DecoderConfig(vocabulary=4, width=12, layers=1, heads=1, kv_heads=1, head_dim=4, mlp_width=4),
    compute_dtype="float32",
)


def test_tokens_and_gradients(reference, translated, complete, close, close_trees):
    theirs = reference("resampler")
    probe, levels = jnp.asarray(theirs["probe"]), tuple(jnp.asarray(theirs["features"]))

    @jax.jit
    def run(params):
        def probed(params):
            tokens = parameters.abstract(CONFIG)[0].merge(params).connector(levels)
            return jnp.sum(tokens * probe), tokens

        return jax.grad(probed, has_aux=True)(params)

    gradient, tokens = run(complete(CONFIG, translated(theirs, "weight", "connector/")))
    close(tokens, theirs["tokens"])
    close_trees(gradient, translated(theirs, "gradient", "connector/"))
