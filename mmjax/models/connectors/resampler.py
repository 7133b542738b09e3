"""The multi-scale windowed resampler of Chain-of-Sight (arXiv:2407.15819, section 3 and figure 2).

A scale cuts the patch grid into square windows; each window has learned queries of its own that read the patches of that window only.
Weights are shared by the windows of a scale and owned by the scale. A query reads one encoder layer after the other, one block each. The
scales' tokens, from the global window to the finest, are concatenated, normalised and projected to the decoder's width.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx

from mmjax.errors import InputError
from mmjax.kernels.attention import attention
from mmjax.models.attention import Projections
from mmjax.models.config import Activation, Norm
from mmjax.models.connectors.base import AttentionMap, ConnectorConfig, Encoder, FlopCounter, Growth
from mmjax.models.layers import MLP, ImageBoundaryTokens, Linear, make_norm, truncated_normal
from mmjax.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class ResamplerConfig(ConnectorConfig):
    """The multi-scale windowed resampler; one window over the grid is the plain resampler.

    Attributes:
        windows: side of the (square) windows of each scale, in patches, coarse to fine.
        queries: learned queries of each scale, over all of its windows.
        feature_layers: the encoder outputs a query reads, one after the other.
        width: of the queries and of the features.
        query_std, weight_std: initialisation, as in ViTConfig.
        image_boundary_tokens: whether a learned vector stands before and another one behind the visual tokens of an image.
        parents: for each scale, the index of the scale of the stage before that it is grown from (transition `inflate`); empty: scale i
            from i.
    """

    kind: Literal["resampler"]
    windows: tuple[int, ...]
    queries: tuple[int, ...]
    feature_layers: tuple[int, ...]
    width: int
    head_dim: int
    mlp_width: int
    activation: Activation = "gelu"
    norm: Norm = "layer"
    norm_epsilon: float = 1e-5
    query_std: float = 0.02
    weight_std: float | None = 0.02
    image_boundary_tokens: bool = False
    parents: tuple[int, ...] = ()

    inflatable = ("scales/",)
    not_of_the_function = ("query_std", "weight_std", "parents")

    def visual_tokens(self, vision: Encoder) -> int:
        return sum(self.queries) + 2 * self.image_boundary_tokens

    def build(
        self, vision: Encoder, output_width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> nnx.Module:
        assert self.width == vision.width, "a resampler works at the encoder's width"
        return Resampler(self, output_width, dtype=dtype, rngs=rngs)

    def head_counts(self) -> dict[str, int]:
        return {"connector.width / head_dim": self.width // self.head_dim}

    def problems(self, path: str, vision: Encoder, *, first_stage: bool) -> Iterator[str]:
        for name in ("width", "head_dim", "mlp_width"):
            if getattr(self, name) <= 0:
                yield f"{path}.{name} must be positive, not {getattr(self, name)}"
        if self.width != vision.width:
            yield f"{path}.width {self.width} must be equal to vision.width {vision.width}, that of the features"
        if self.head_dim > 0 and self.width % self.head_dim:
            yield f"{path}.width {self.width} must be divisible by head_dim {self.head_dim}"
        if first_stage and self.parents:
            yield f"{path}.parents must be empty in the first stage, which has no scales to grow from; it is {self.parents}"
        if len(self.windows) != len(self.queries) or not self.windows:
            yield (
                f"{path}.windows and queries must name as many scales, and at least one; they name {len(self.windows)} and "
                f"{len(self.queries)}"
            )
            return
        if list(self.windows) != sorted(self.windows, reverse=True):
            yield f"{path}.windows must run from coarse to fine, the largest window first, not {self.windows}"
        if vision.patch_size >= 1 and vision.image_size % vision.patch_size == 0:
            yield from self._scale_problems(path, vision)

    def _scale_problems(self, path: str, vision: Encoder) -> Iterator[str]:
        for window, count in zip(self.windows, self.queries, strict=True):
            if window < 1 or vision.grid % window:
                sides = [side for side in range(1, vision.grid + 1) if vision.grid % side == 0]
                yield (
                    f"{path}.windows must tile the grid of {vision.grid} x {vision.grid} patches ({vision.image_size} pixels in patches of "
                    f"{vision.patch_size}), and windows of {window} x {window} do not; the side must be one of {', '.join(map(str, sides))}"
                )
            elif count < 1 or count % (vision.grid // window) ** 2:
                number = (vision.grid // window) ** 2
                yield (
                    f"{path}.queries must divide evenly over the windows of a scale, and {count} queries do not over {number} windows of "
                    f"side {window}; {number} do"
                )

    def count_flops(
        self, counter: FlopCounter, vision: Encoder, images: int, needs_gradient: bool
    ) -> bool:
        outputs = False
        for scale, (window, count) in enumerate(zip(self.windows, self.queries, strict=True)):
            queries, needs = images * count, counter.trains(f"connector/scales/{scale}/queries")
            for block in range(len(self.feature_layers)):
                path = f"connector/scales/{scale}/blocks/{block}"
                query = counter.linear(
                    f"{path}/query", queries, needs or counter.trains(f"{path}/norm_query")
                )
                read = needs_gradient or counter.trains(f"{path}/norm_features")
                key, value = (
                    counter.linear(f"{path}/{name}", images * vision.patches, read)
                    for name in ("key", "value")
                )
                mixed = counter.attention(queries, window**2, self.width, (query, key, value))
                needs = counter.linear(f"{path}/output", queries, mixed) or needs
                hidden = counter.linear(
                    f"{path}/mlp/up", queries, needs or counter.trains(f"{path}/norm_mlp")
                )
                needs = counter.linear(f"{path}/mlp/down", queries, hidden) or needs
            outputs = outputs or needs
        rows = images * sum(self.queries)
        needs = counter.linear(
            "connector/projection", rows, outputs or counter.trains("connector/norm")
        )
        return needs or counter.trains("connector/image_boundary_tokens")

    def activation_elements(self, vision: Encoder, output_width: int) -> int:
        """10 D for each query and 2 D for each patch, of each scale and feature layer."""
        per_layer = 10 * sum(self.queries) + 2 * len(self.queries) * vision.patches
        return len(self.feature_layers) * per_layer * self.width + sum(self.queries) * output_width

    def growth(
        self, before: ConnectorConfig, old_vision: Encoder, vision: Encoder
    ) -> tuple[Growth, ...]:
        """Each scale grows out of one scale of the stage before, its parent.

        Raises:
            InputError: `parents` does not name one scale of the stage before for each scale; windows do not tile their grid, or queries do
                not divide over them; the queries grow by anything but 1 or the square of a whole number; or the windows per side do not
                grow by its root.
        """
        if not isinstance(before, ResamplerConfig):
            raise InputError(
                f"inflate grows a resampler out of a resampler; the connector of the stage before is of kind {before.kind!r}."
            )
        for connector, place in ((before, "of the stage before"), (self, "of this stage")):
            if len(connector.queries) != len(connector.windows):
                raise InputError(
                    f"The connector {place} must have a window and a number of queries for every scale; it has {len(connector.windows)} "
                    f"windows and {len(connector.queries)} entries of queries."
                )
        parents = self._parents_in(before)
        return tuple(
            self._scale_growth(index, parent, before, old_vision, vision)
            for index, parent in enumerate(parents)
        )

    def _parents_in(self, before: "ResamplerConfig") -> tuple[int, ...]:
        scales = len(self.windows)
        if not self.parents:
            if len(before.windows) != scales:
                example = tuple(
                    max(0, index - scales + len(before.windows)) for index in range(scales)
                )
                raise InputError(
                    f"connector.parents is empty, so scale i would grow from scale i, but there were {len(before.windows)} scales and now "
                    f"there are {scales}; name the parent of each, such as {example}."
                )
            return tuple(range(scales))
        if len(self.parents) != scales:
            raise InputError(
                f"connector.parents must name one parent for each of {scales} scales; it names {len(self.parents)} parents."
            )
        for parent in self.parents:
            if not 0 <= parent < len(before.windows):
                raise InputError(
                    f"connector.parents names scale {parent}, but the stage before has scales 0 to {len(before.windows) - 1}."
                )
        return self.parents

    def _scale_growth(
        self,
        index: int,
        parent: int,
        before: "ResamplerConfig",
        old_vision: Encoder,
        vision: Encoder,
    ) -> Growth:
        old_side, new_side = (
            before.windows_per_side(parent, old_vision),
            self.windows_per_side(index, vision),
        )
        old_queries, new_queries = before.queries[parent], self.queries[index]
        factor = math.isqrt(new_queries // old_queries)
        if factor**2 * old_queries != new_queries:
            root = max(1, factor)
            raise InputError(
                f"Scale {index} cannot grow from {old_queries} to {new_queries} queries, a factor of {new_queries / old_queries:g}: "
                "it must be 1 or the square of a whole number, because a window's queries are repeated along both sides; "
                f"{root**2 * old_queries} or {(root + 1) ** 2 * old_queries} would do."
            )
        if new_side != old_side * factor:
            needed = old_side * factor
            fitting = (
                f", which is windows of {vision.grid // needed}"
                if vision.grid % needed == 0
                else ""
            )
            raise InputError(
                f"Scale {index} has {new_side} x {new_side} windows (of {self.windows[index]} on a grid of {vision.grid}), but "
                f"{factor**2} times the queries of scale {parent}, with its {old_side} x {old_side}, go with {needed} x {needed}{fitting}."
            )
        grown = f"{old_side} x {old_side} windows repeated to {new_side} x {new_side}"
        return Growth(
            source=f"scales/{parent}/", target=f"scales/{index}/", tiled=("queries",), side=old_side, factor=factor,
            note=f"from scale {parent}", tiled_note=f"from scale {parent}, {grown}",
        )  # fmt: skip

    def windows_per_side(self, scale: int, vision: Encoder) -> int:
        """Windows per side of a scale.

        Raises:
            InputError: the windows do not tile the grid of patches, or the queries do not divide over them.
        """
        window, queries, grid = self.windows[scale], self.queries[scale], vision.grid
        if window < 1 or grid % window:
            raise InputError(
                f"Scale {scale}: windows of {window} x {window} patches do not tile the grid of {grid} x {grid}."
            )
        side = grid // window
        if queries < 1 or queries % side**2:
            raise InputError(
                f"Scale {scale}: {queries} queries do not divide evenly over {side} x {side} windows."
            )
        return side

    def reinterpretations(
        self, before: ConnectorConfig, old_vision: Encoder, vision: Encoder, *, inflated: bool
    ) -> Iterator[str]:
        if not isinstance(before, ResamplerConfig):
            return
        if before.head_dim != self.head_dim:
            yield (
                f"connector.head_dim was {before.head_dim} and is now {self.head_dim}: the columns of trained weights belong to the heads "
                "they were trained for"
            )
        if inflated:
            return
        if self.parents not in ((), tuple(range(len(before.windows)))):
            yield f"connector.parents is {self.parents}, which only 'inflate' follows; it is not among the stage's transitions"
        elif before.queries == self.queries:
            for scale in range(len(self.queries)):
                old_side, side = (
                    before.windows_per_side(scale, old_vision),
                    self.windows_per_side(scale, vision),
                )
                if old_side != side:
                    yield (
                        f"scale {scale} of the connector had {old_side} x {old_side} windows and now has {side} x {side} for as many "
                        "queries: queries belong to the window they were trained for, and only 'inflate' gives more windows more queries"
                    )

    def attention_maps(
        self, connector: nnx.Module, features: tuple[Any, ...]
    ) -> list[AttentionMap]:
        """The softmax weights of each scale, coarse to fine: those of a window sum to 1."""
        assert isinstance(connector, Resampler)
        return [
            AttentionMap(scale.window, scale.attention_map(features)) for scale in connector.scales
        ]


def partition(x: Float[Array, "B P D"], window: int) -> Float[Array, "BW S D"]:
    """Patches (row by row) into windows (row by row) of window^2 patches: [B, P, D] -> [B * W, window^2, D]."""
    side = round(x.shape[1] ** 0.5) // window
    return rearrange(x, "B (i a j b) D -> (B i j) (a b) D", i=side, j=side, a=window, b=window)


def on_grid(weights: Float[Array, "W Q S"], window: int) -> Float[Array, "Q P P"]:
    """Weights over the window^2 patches of each window (windows and patches row by row) to maps over the whole grid."""
    side = round(len(weights) ** 0.5)
    return rearrange(weights, "(i j) Q (a b) -> Q (i a) (j b)", i=side, j=side, a=window, b=window)


class ResamplerBlock(Projections):
    """What a query does with one feature block: q + attention(norm(q), norm(x)), then q + mlp(norm(q)).

    Keys and values are the window's patches alone; queries do not see each other. Query, key and value have no bias.
    """

    def __init__(self, c: ResamplerConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        heads, bias = c.width // c.head_dim, c.norm == "layer"
        super().__init__(
            c.width,
            heads,
            heads,
            c.head_dim,
            bias=False,
            output_bias=bias,
            std=c.weight_std,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm_query = make_norm(c.norm, c.width, c.norm_epsilon)
        self.norm_features = make_norm(c.norm, c.width, c.norm_epsilon)
        self.norm_mlp = make_norm(c.norm, c.width, c.norm_epsilon)
        self.mlp = MLP(
            c.width, c.mlp_width, c.activation, bias=bias, std=c.weight_std, dtype=dtype, rngs=rngs
        )

    def __call__(
        self, q: Float[Array, "BW Q D"], x: Float[Array, "BW S D"]
    ) -> Float[Array, "BW Q D"]:
        z = self.norm_features(x)
        heads = attention(
            self.split(self.query(self.norm_query(q))),
            self.split(self.key(z)),
            self.split(self.value(z)),
        )
        q = q + self.output(self.join(heads))
        return q + self.mlp(self.norm_mlp(q))

    def weights(
        self, q: Float[Array, "BW Q D"], x: Float[Array, "BW S D"]
    ) -> Float[Array, "BW N Q S"]:
        """The softmax weights of the attention in `__call__`, for looking at."""
        q, k = (
            self.split(self.query(self.norm_query(q))),
            self.split(self.key(self.norm_features(x))),
        )
        scores = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32)
        return jax.nn.softmax(scores * self.head_dim**-0.5, axis=-1)


class Scale(nnx.Module):
    """One window size: learned queries [N, D], window-major, and one `ResamplerBlock` per feature layer."""

    def __init__(
        self, c: ResamplerConfig, window: int, queries: int, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.queries = nnx.Param(
            truncated_normal(rngs.params(), (queries, c.width), c.query_std), axes=(None, "embed")
        )
        self.blocks = nnx.List([ResamplerBlock(c, dtype, rngs) for _ in c.feature_layers])
        self.window, self.dtype = window, dtype

    def start(self, batch: int, patches: int) -> Float[Array, "BW Q D"]:
        """The learned queries dealt out to the windows of every image."""
        q, windows = self.queries[...].astype(self.dtype), patches // self.window**2
        return repeat(q, "(W Q) D -> (B W) Q D", B=batch, W=windows)

    def attention_map(
        self, features: tuple[Float[Array, "1 S D"], ...]
    ) -> Float[Array, "layers Q P P"]:
        """Where the queries look in one image, block by block, put back onto the grid of patches."""
        queries, maps = self.start(1, features[0].shape[1]), []
        for block, x in zip(self.blocks, features, strict=True):
            patches = partition(x, self.window)
            maps.append(on_grid(block.weights(queries, patches).mean(axis=1), self.window))
            queries = block(queries, patches)
        return jnp.stack(maps)

    def __call__(self, features: tuple[Float[Array, "B P D"], ...]) -> Float[Array, "B N D"]:
        batch, patches, _ = features[0].shape
        q = self.start(batch, patches)
        for block, x in zip(self.blocks, features, strict=True):
            q = block(q, partition(x, self.window))
        return rearrange(q, "(B W) Q D -> B (W Q) D", B=batch)


class Resampler(nnx.Module):
    """Encoder features to L visual tokens at the decoder's width."""

    def __init__(
        self, config: ResamplerConfig, output_width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        c = config
        self.scales = nnx.List(
            [
                Scale(c, window, queries, dtype, rngs)
                for window, queries in zip(c.windows, c.queries, strict=True)
            ]
        )
        self.norm = make_norm(c.norm, c.width, c.norm_epsilon)
        self.projection = Linear(
            c.width,
            output_width,
            axes=("embed", None),
            bias=True,
            std=c.weight_std,
            dtype=dtype,
            rngs=rngs,
        )
        if c.image_boundary_tokens:
            self.image_boundary_tokens = ImageBoundaryTokens(output_width, rngs)
        self.bounded = c.image_boundary_tokens

    def __call__(self, features: tuple[Float[Array, "B P D"], ...]) -> Float[Array, "B L E"]:
        """Features of every block to visual tokens, coarse scales first."""
        tokens = self.projection(
            self.norm(jnp.concatenate([scale(features) for scale in self.scales], axis=1))
        )
        return self.image_boundary_tokens(tokens) if self.bounded else tokens
