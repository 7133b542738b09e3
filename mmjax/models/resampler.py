"""The multi-scale windowed resampler of Chain-of-Sight (arXiv:2407.15819, section 3 and figure 2).

A scale cuts the patch grid into square windows; each window has learned queries of its own that read the patches of that window only.
Weights are shared by the windows of a scale and owned by the scale. A query reads one encoder layer after the other, one block each. The
scales' tokens, from the global window to the finest, are concatenated, normalised and projected to the decoder's width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.kernels.attention import attention
from mmjax.models.attention import Projections
from mmjax.models.boundaries import Boundaries
from mmjax.models.config import ResamplerConfig
from mmjax.models.linear import Linear, truncated_normal
from mmjax.models.mlp import MLP
from mmjax.models.norms import make_norm
from mmjax.typing import Array, Float


def partition(x: Float[Array, "B P D"], window: int) -> Float[Array, "BW S D"]:
    """Patches (row by row) into windows (row by row) of window^2 patches: [B, P, D] -> [B * W, window^2, D]."""
    batch, patches, width = x.shape
    windows = round(patches**0.5) // window
    x = x.reshape(batch, windows, window, windows, window, width).swapaxes(2, 3)
    return x.reshape(batch * windows**2, window**2, width)


class Level(Projections):
    """What a query does with one feature level: q + attention(norm(q), norm(x)), then q + mlp(norm(q)).

    Keys and values are the window's patches alone; queries do not see each other. Query, key and value have no bias.
    """

    def __init__(self, c: ResamplerConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        heads, bias = c.width // c.head_dim, c.norm == "layer"
        super().__init__(c.width, heads, heads, c.head_dim, bias=False, output_bias=bias, std=c.weight_std, dtype=dtype, rngs=rngs)
        self.norm_query = make_norm(c.norm, c.width, c.norm_epsilon)
        self.norm_features = make_norm(c.norm, c.width, c.norm_epsilon)
        self.norm_mlp = make_norm(c.norm, c.width, c.norm_epsilon)
        self.mlp = MLP(c.width, c.mlp_width, c.activation, bias=bias, std=c.weight_std, dtype=dtype, rngs=rngs)

    def __call__(self, q: Float[Array, "BW Q D"], x: Float[Array, "BW S D"]) -> Float[Array, "BW Q D"]:
        z = self.norm_features(x)
        heads = attention(self.split(self.query(self.norm_query(q))), self.split(self.key(z)), self.split(self.value(z)))
        q = q + self.output(self.join(heads))
        return q + self.mlp(self.norm_mlp(q))

    def weights(self, q: Float[Array, "BW Q D"], x: Float[Array, "BW S D"]) -> Float[Array, "BW N Q S"]:
        """The softmax weights of the attention in `__call__`, for looking at."""
        q, k = self.split(self.query(self.norm_query(q))), self.split(self.key(self.norm_features(x)))
        scores = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32)
        return jax.nn.softmax(scores * self.head_dim**-0.5, axis=-1)


class Scale(nnx.Module):
    """One window size: learned queries [N, D], window-major, and one `Level` per feature layer."""

    def __init__(self, c: ResamplerConfig, window: int, queries: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.queries = nnx.Param(truncated_normal(rngs.params(), (queries, c.width), c.query_std), axes=(None, "embed"))
        self.levels = nnx.List([Level(c, dtype, rngs) for _ in c.feature_layers])
        self.window, self.dtype = window, dtype

    def start(self, batch: int, patches: int) -> Float[Array, "BW Q D"]:
        """The learned queries dealt out to the windows of every picture."""
        queries, width = self.queries.shape
        windows = patches // self.window**2
        q = jnp.broadcast_to(self.queries[...].astype(self.dtype), (batch, queries, width))
        return q.reshape(batch * windows, queries // windows, width)

    def __call__(self, features: tuple[Float[Array, "B P D"], ...]) -> Float[Array, "B N D"]:
        batch, patches, width = features[0].shape
        q = self.start(batch, patches)
        for level, x in zip(self.levels, features, strict=True):
            q = level(q, partition(x, self.window))
        return q.reshape(batch, -1, width)


class Resampler(nnx.Module):
    """Encoder features to L visual tokens at the decoder's width."""

    def __init__(self, config: ResamplerConfig, output_width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        c = config
        self.scales = nnx.List([Scale(c, window, queries, dtype, rngs) for window, queries in zip(c.windows, c.queries, strict=True)])
        self.norm = make_norm(c.norm, c.width, c.norm_epsilon)
        self.projection = Linear(c.width, output_width, axes=("embed", None), bias=True, std=c.weight_std, dtype=dtype, rngs=rngs)
        if c.boundaries:
            self.boundaries = Boundaries(output_width, rngs)
        self.bounded = c.boundaries

    def __call__(self, features: tuple[Float[Array, "B P D"], ...]) -> Float[Array, "B L E"]:
        """Features of every level to visual tokens, coarse scales first."""
        tokens = self.projection(self.norm(jnp.concatenate([scale(features) for scale in self.scales], axis=1)))
        return self.boundaries(tokens) if self.bounded else tokens
