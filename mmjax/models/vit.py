"""The vision transformer with CLIP's details (arXiv:2103.00020): pre-norm blocks, optional class token, norm after the embeddings,
QuickGELU.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.kernels.attention import attention
from mmjax.models.attention import Projections
from mmjax.models.config import ViTConfig
from mmjax.models.layers import Remat, scan, stack
from mmjax.models.linear import Linear, truncated_normal
from mmjax.models.mlp import MLP
from mmjax.models.norms import make_norm
from mmjax.typing import AnyArray, Array, Float, UInt8


class VisionBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). With LayerNorm every linear map has a bias, with RMSNorm none has."""

    def __init__(self, c: ViTConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        bias = c.norm == "layer"
        self.norm_attention = make_norm(c.norm, c.width, c.norm_epsilon)
        self.attention = Projections(
            c.width, c.heads, c.heads, c.width // c.heads, bias=bias, output_bias=bias, std=c.weight_std, dtype=dtype, rngs=rngs
        )
        self.norm_mlp = make_norm(c.norm, c.width, c.norm_epsilon)
        self.mlp = MLP(c.width, c.mlp_width, c.activation, bias=bias, std=c.weight_std, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        a, z = self.attention, self.norm_attention(x)
        x = x + a.output(a.join(attention(a.split(a.query(z)), a.split(a.key(z)), a.split(a.value(z)))))
        return x + self.mlp(self.norm_mlp(x))


class ViT(nnx.Module):
    """Pixels to patch features, read after any number of blocks."""

    def __init__(self, config: ViTConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs, remat: Remat = "none", unroll: int = 1):
        c = config
        self.patch = Linear(c.patch_size**2 * 3, c.width, axes=(None, "embed"), bias=c.patch_bias, std=c.weight_std, dtype=dtype, rngs=rngs)
        if c.class_token:
            self.class_token = nnx.Param(truncated_normal(rngs.params(), (c.width,), c.embedding_std), axes=("norm",))
        table = truncated_normal(rngs.params(), (c.patches + c.class_token, c.width), c.embedding_std)
        self.position = nnx.Param(table, axes=(None, "embed"))
        if c.embedding_norm:
            self.embedding_norm = make_norm(c.norm, c.width, c.norm_epsilon)
        self.layers = stack(lambda rngs: VisionBlock(c, dtype, rngs), c.layers, rngs)
        self.config, self.dtype, self.remat, self.unroll = c, dtype, remat, unroll

    def __call__(self, pixels: UInt8[AnyArray, "B h w 3"] | Float[Array, "B h w 3"], layers: tuple[int, ...]) -> tuple[Array, ...]:
        """Patch features after `layers` blocks each.

        Args:
            pixels: uint8 in 0..255, or floats that are normalised already.
            layers: non-decreasing block counts k, 0 <= k <= config.layers; k is Hugging Face's hidden_states[k].

        Returns:
            One [B, P, D] array per requested layer, without the class token.
        """
        assert list(layers) == sorted(layers) and layers[-1] <= self.config.layers, layers
        x, done, features = self.embed(pixels), 0, []
        for wanted in layers:
            if wanted > done:
                x, _ = scan(
                    self.layers, lambda block, x, _: (block(x), None), x, start=done, stop=wanted, remat=self.remat, unroll=self.unroll
                )
                done = wanted
            features.append(x[:, int(self.config.class_token) :])
        return tuple(features)

    def embed(self, pixels: UInt8[AnyArray, "B h w 3"] | Float[Array, "B h w 3"]) -> Float[Array, "B T D"]:
        """Patches (row, column, channel within a patch; patches row by row) through one matrix, class token in front, positions added."""
        c, pixels = self.config, jnp.asarray(pixels)
        if jnp.issubdtype(pixels.dtype, jnp.integer):
            pixels = (pixels.astype(jnp.float32) / 255 - np.array(c.image_mean, np.float32)) / np.array(c.image_std, np.float32)
        batch, g, p = pixels.shape[0], c.grid, c.patch_size
        x = self.patch(pixels.reshape(batch, g, p, g, p, 3).swapaxes(2, 3).reshape(batch, g * g, p * p * 3))
        if c.class_token:
            first = jnp.broadcast_to(self.class_token[...].astype(self.dtype), (batch, 1, c.width))
            x = jnp.concatenate([first, x], axis=1)
        x = x + self.position[...].astype(self.dtype)
        return self.embedding_norm(x) if c.embedding_norm else x
