"""The vision transformer of CLIP (arXiv:2103.00020), SigLIP (arXiv:2303.15343) and DINOv2 (arXiv:2304.07193).

Pre-norm blocks, an optional class token, a norm after the embeddings, LayerScale, an attention pooling head; and the bicubic interpolation
of the position table for images with another number of patches.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import nnx

from mmjax.kernels.attention import attention
from mmjax.models.attention import Projections
from mmjax.models.config import ViTConfig
from mmjax.models.layers import (
    MLP,
    Linear,
    Remat,
    SwiGLU,
    make_norm,
    put_stacks,
    run,
    truncated_normal,
)
from mmjax.typing import AnyArray, Array, Float, UInt8

SHARPNESS = -0.75  # the free parameter of the cubic convolution kernel (Keys 1981) that PyTorch and OpenCV use; jax.image.resize uses -0.5


def resize_table(
    table: Float[Array, "positions D"],
    before: tuple[int, int],
    after: tuple[int, int],
    *,
    align_corners: bool,
) -> Float[Array, "resized D"]:
    """A position table over `after` (rows, columns) of patches, from one over `before`; rows before the grid (a class token's) are kept.

    The same numbers as torch's `F.interpolate(mode="bicubic")`, which does not smooth when it shrinks.

    Args:
        align_corners: whether the outermost samples of both grids coincide, or (as in transformers) the edges of their areas.
    """
    extra = table.shape[0] - before[0] * before[1]
    assert extra in (0, 1), f"{table.shape[0]} rows are no grid of {before[0]} x {before[1]}"
    grid = rearrange(table[extra:].astype(jnp.float32), "(i j) D -> i j D", i=before[0])
    down, across = (
        jnp.asarray(interpolation_matrix(*sizes, align_corners=align_corners))
        for sizes in zip(before, after, strict=True)
    )
    grid = jnp.einsum("ai,bj,ijd->abd", down, across, grid, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([table[:extra], rearrange(grid, "a b D -> (a b) D").astype(table.dtype)])


def interpolation_matrix(
    before: int, after: int, *, align_corners: bool
) -> Float[np.ndarray, "after before"]:
    """Weights (float32) that interpolate `before` samples at `after` points; each row sums to 1.

    Beyond the border the outermost sample is repeated.
    """
    points = np.arange(after, dtype=np.float64)
    if align_corners:
        points *= (before - 1) / max(after - 1, 1)
    else:
        points = (points + 0.5) * (before / after) - 0.5
    # The cubic kernel reaches two samples to either side.
    first = np.floor(points).astype(np.int64) - 1
    matrix = np.zeros((after, before))
    for tap in range(4):
        sample = np.clip(first + tap, 0, before - 1)
        np.add.at(matrix, (np.arange(after), sample), _cubic(points - (first + tap)))
    return matrix.astype(np.float32)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Cubic convolution kernel (Keys, IEEE TASSP 1981, eq. 15, with its parameter free)."""
    x, a = np.abs(distance), SHARPNESS
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


class PoolingHead(nnx.Module):
    """x = attention(probe, patches), then x + mlp(norm(x)): `probe` is one learned query."""

    def __init__(self, c: ViTConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.probe = nnx.Param(
            truncated_normal(rngs.params(), (c.width,), c.embedding_std), axes=("norm",)
        )
        self.attention = Projections(
            c.width,
            c.heads,
            c.heads,
            c.width // c.heads,
            bias=True,
            output_bias=True,
            std=c.weight_std,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = make_norm(c.norm, c.width, c.norm_epsilon)
        self.mlp = MLP(
            c.width, c.mlp_width, c.activation, bias=True, std=c.weight_std, dtype=dtype, rngs=rngs
        )
        self.dtype = dtype

    def __call__(self, features: Float[Array, "B P D"]) -> Float[Array, "B D"]:
        a = self.attention
        probe = repeat(self.probe[...].astype(self.dtype), "D -> B 1 D", B=len(features))
        heads = attention(
            a.split(a.query(probe)), a.split(a.key(features)), a.split(a.value(features))
        )
        x = a.output(a.join(heads))
        return (x + self.mlp(self.norm(x)))[:, 0]


class VisionBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), both times a learned scale per channel with `layer_scale`. With LayerNorm every linear
    map has a bias, with RMSNorm none has.
    """

    def __init__(self, c: ViTConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        bias = c.norm == "layer"
        self.norm_attention = make_norm(c.norm, c.width, c.norm_epsilon)
        self.attention = Projections(
            c.width,
            c.heads,
            c.heads,
            c.width // c.heads,
            bias=bias,
            output_bias=bias,
            std=c.weight_std,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm_mlp = make_norm(c.norm, c.width, c.norm_epsilon)
        if c.gated_mlp:
            self.mlp: SwiGLU | MLP = SwiGLU(
                c.width, c.mlp_width, bias=bias, std=c.weight_std, dtype=dtype, rngs=rngs
            )
        else:
            self.mlp = MLP(
                c.width,
                c.mlp_width,
                c.activation,
                bias=bias,
                std=c.weight_std,
                dtype=dtype,
                rngs=rngs,
            )
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

    def __init__(
        self,
        config: ViTConfig,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        remat: Remat = "none",
        unroll: int = 1,
    ):
        c = config
        self.patch = Linear(
            c.patch_size**2 * 3,
            c.width,
            axes=(None, "embed"),
            bias=c.patch_bias,
            std=c.weight_std,
            dtype=dtype,
            rngs=rngs,
        )
        if c.class_token:
            self.class_token = nnx.Param(
                truncated_normal(rngs.params(), (c.width,), c.embedding_std), axes=("norm",)
            )
        table = truncated_normal(
            rngs.params(), (c.patches + c.class_token, c.width), c.embedding_std
        )
        self.position = nnx.Param(table, axes=(None, "embed"))
        if c.embedding_norm:
            self.embedding_norm = make_norm(c.norm, c.width, c.norm_epsilon)
        put_stacks(self, c.layer_ranges, lambda rngs: VisionBlock(c, dtype, rngs), rngs)
        if c.final_norm:
            self.final_norm = make_norm(c.norm, c.width, c.norm_epsilon)
        if c.pooling_head:
            self.head = PoolingHead(c, dtype, rngs)
        self.config, self.dtype, self.remat, self.unroll = c, dtype, remat, unroll

    def __call__(
        self, pixels: UInt8[AnyArray, "B h w 3"] | Float[Array, "B h w 3"], layers: tuple[int, ...]
    ) -> tuple[Array, ...]:
        """Patch features after `layers` blocks each.

        Args:
            pixels: uint8 in 0..255, or floats that are normalised already.
            layers: non-decreasing block counts k, 0 <= k <= config.layers; k is Hugging Face's hidden_states[k].

        Returns:
            One [B, P, D] array per requested layer, without the class token.
        """
        return tuple(
            x[:, int(self.config.class_token) :] for x in self.hidden_states(pixels, layers)
        )

    @jax.named_scope("vision")
    def hidden_states(
        self, pixels: UInt8[AnyArray, "B h w 3"] | Float[Array, "B h w 3"], layers: tuple[int, ...]
    ) -> tuple[Array, ...]:
        """As `__call__`, but with the class token in front, if there is one: [B, P + 1, D]."""
        assert list(layers) == sorted(layers) and layers[-1] <= self.config.layers, layers
        x, done, features = self.embed(pixels), 0, []
        for wanted in layers:
            if wanted > done:
                body = lambda block, x, _: (block(x), None)  # noqa: E731
                x, _ = run(
                    self,
                    self.config.layer_ranges,
                    body,
                    x,
                    start=done,
                    stop=wanted,
                    remat=self.remat,
                    unroll=self.unroll,
                )
                done = wanted
            features.append(x)
        return tuple(features)

    def embed(
        self, pixels: UInt8[AnyArray, "B h w 3"] | Float[Array, "B h w 3"]
    ) -> Float[Array, "B T D"]:
        """Patches (row, column, channel within a patch; patches row by row) through one matrix, class token in front, positions added.

        Pixels beyond the last whole patch are not read. For an image that is not image_size x image_size the table is interpolated.
        """
        c, pixels = self.config, jnp.asarray(pixels)
        if jnp.issubdtype(pixels.dtype, jnp.integer):
            pixels = (
                pixels.astype(jnp.float32) / 255 - np.array(c.image_mean, np.float32)
            ) / np.array(c.image_std, np.float32)
        p = c.patch_size
        rows, columns = pixels.shape[1] // p, pixels.shape[2] // p
        pixels = pixels[:, : rows * p, : columns * p]
        x = self.patch(rearrange(pixels, "B (i h) (j w) c -> B (i j) (h w c)", h=p, w=p))
        if c.class_token:
            first = repeat(self.class_token[...].astype(self.dtype), "D -> B 1 D", B=len(x))
            x = jnp.concatenate([first, x], axis=1)
        x = x + self._positions(rows, columns).astype(self.dtype)
        return self.embedding_norm(x) if c.embedding_norm else x

    def _positions(self, rows: int, columns: int) -> Float[Array, "T D"]:
        table, grid = self.position[...], (self.config.grid, self.config.grid)
        return (
            table
            if (rows, columns) == grid
            else resize_table(table, grid, (rows, columns), align_corners=False)
        )
