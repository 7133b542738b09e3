"""The vision transformer of CLIP (arXiv:2103.00020), SigLIP (arXiv:2303.15343) and DINOv2 (arXiv:2304.07193): pre-norm blocks, optional
class token, norm after the embeddings, LayerScale.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.kernels.attention import attention
from mmjax.models.attention import Projections
from mmjax.models.config import ViTConfig
from mmjax.models.layers import Remat, put_stacks, run
from mmjax.models.linear import Linear, truncated_normal
from mmjax.models.mlp import MLP, SwiGLU
from mmjax.models.norms import make_norm
from mmjax.models.pooling import PoolingHead
from mmjax.models.position_table import resize_table
from mmjax.typing import AnyArray, Array, Float, UInt8


class VisionBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), both times a learned scale per channel with `layer_scale`. With LayerNorm every linear
    map has a bias, with RMSNorm none has.
    """

    def __init__(self, c: ViTConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        bias = c.norm == "layer"
        self.norm_attention = make_norm(c.norm, c.width, c.norm_epsilon)
        self.attention = Projections(
            c.width, c.heads, c.heads, c.width // c.heads, bias=bias, output_bias=bias, std=c.weight_std, dtype=dtype, rngs=rngs
        )
        self.norm_mlp = make_norm(c.norm, c.width, c.norm_epsilon)
        if c.gated_mlp:
            self.mlp: SwiGLU | MLP = SwiGLU(c.width, c.mlp_width, bias=bias, std=c.weight_std, dtype=dtype, rngs=rngs)
        else:
            self.mlp = MLP(c.width, c.mlp_width, c.activation, bias=bias, std=c.weight_std, dtype=dtype, rngs=rngs)
        if c.layer_scale:
            self.scale_attention = nnx.Param(jnp.ones(c.width), axes=("norm",))
            self.scale_mlp = nnx.Param(jnp.ones(c.width), axes=("norm",))
        self.layer_scale = c.layer_scale

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        a = self.attention
        mixed = a.output(a.join(attention(*a.heads(self.norm_attention(x)))))
        x = x + (mixed * self.scale_attention[...].astype(x.dtype) if self.layer_scale else mixed)
        mapped = self.mlp(self.norm_mlp(x))
        return x + (mapped * self.scale_mlp[...].astype(x.dtype) if self.layer_scale else mapped)


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
        put_stacks(self, c.spans, lambda rngs: VisionBlock(c, dtype, rngs), rngs)
        if c.final_norm:
            self.final_norm = make_norm(c.norm, c.width, c.norm_epsilon)
        if c.pooling_head:
            self.head = PoolingHead(c, dtype, rngs)
        self.config, self.dtype, self.remat, self.unroll = c, dtype, remat, unroll

    def __call__(self, pixels: UInt8[AnyArray, "B h w 3"] | Float[Array, "B h w 3"], layers: tuple[int, ...]) -> tuple[Array, ...]:
        """Patch features after `layers` blocks each.

        Args:
            pixels: uint8 in 0..255, or floats that are normalised already.
            layers: non-decreasing block counts k, 0 <= k <= config.layers; k is Hugging Face's hidden_states[k].

        Returns:
            One [B, P, D] array per requested layer, without the class token.
        """
        return tuple(x[:, int(self.config.class_token) :] for x in self.hidden_states(pixels, layers))

    @jax.named_scope("vision")
    def hidden_states(self, pixels: UInt8[AnyArray, "B h w 3"] | Float[Array, "B h w 3"], layers: tuple[int, ...]) -> tuple[Array, ...]:
        """As `__call__`, but with the class token in front, if there is one: [B, P + 1, D]."""
        assert list(layers) == sorted(layers) and layers[-1] <= self.config.layers, layers
        x, done, features = self.embed(pixels), 0, []
        for wanted in layers:
            if wanted > done:
                body = lambda block, x, _: (block(x), None)  # noqa: E731
                x, _ = run(self, self.config.spans, body, x, start=done, stop=wanted, remat=self.remat, unroll=self.unroll)
                done = wanted
            features.append(x)
        return tuple(features)

    def embed(self, pixels: UInt8[AnyArray, "B h w 3"] | Float[Array, "B h w 3"]) -> Float[Array, "B T D"]:
        """Patches (row, column, channel within a patch; patches row by row) through one matrix, class token in front, positions added.

        Pixels beyond the last whole patch are not read. For a picture that is not image_size x image_size the table is interpolated.
        """
        c, pixels = self.config, jnp.asarray(pixels)
        if jnp.issubdtype(pixels.dtype, jnp.integer):
            pixels = (pixels.astype(jnp.float32) / 255 - np.array(c.image_mean, np.float32)) / np.array(c.image_std, np.float32)
        batch, p = pixels.shape[0], c.patch_size
        rows, columns = pixels.shape[1] // p, pixels.shape[2] // p
        pixels = pixels[:, : rows * p, : columns * p]
        x = self.patch(pixels.reshape(batch, rows, p, columns, p, 3).swapaxes(2, 3).reshape(batch, rows * columns, p * p * 3))
        if c.class_token:
            first = jnp.broadcast_to(self.class_token[...].astype(self.dtype), (batch, 1, c.width))
            x = jnp.concatenate([first, x], axis=1)
        x = x + self._positions(rows, columns).astype(self.dtype)
        return self.embedding_norm(x) if c.embedding_norm else x

    def _positions(self, rows: int, columns: int) -> Float[Array, "T D"]:
        table, grid = self.position[...], (self.config.grid, self.config.grid)
        return table if (rows, columns) == grid else resize_table(table, grid, (rows, columns), align_corners=False)
