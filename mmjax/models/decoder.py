"""A Llama decoder (arXiv:2302.13971, arXiv:2407.21783): RMSNorm, rotary positions, grouped-query attention, SwiGLU; and its relatives."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.distributed.mesh import constrain_batch, gather_fsdp
from mmjax.kernels.attention import IntervalMask, attention
from mmjax.models.attention import Projections, apply_rope, rope_cos_sin
from mmjax.models.config import DecoderConfig
from mmjax.models.layers import (
    Linear,
    Remat,
    RMSNorm,
    SwiGLU,
    matmul_float32,
    put_stacks,
    run,
    truncated_normal,
)
from mmjax.models.moe import MoE
from mmjax.typing import AnyArray, Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of the tokens a row has seen. A row's new tokens go to its own slots length, length + 1, ...

    Attributes:
        keys, values: [layers, B, S, K, H] in the compute dtype.
        length: [B] int32, slots in use.
    """

    keys: Array
    values: Array
    length: Int[Array, "B"]

    @classmethod
    def empty(cls, config: DecoderConfig, batch: int, slots: int, dtype: jnp.dtype) -> "KVCache":
        shape = (config.depth, batch, slots, config.kv_heads, config.head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(batch, jnp.int32))


class DecoderBlock(nnx.Module):
    """x + attention(norm(x)), then x + swiglu(norm(x))."""

    def __init__(self, c: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm_attention = RMSNorm(c.width, c.norm_epsilon)
        self.attention = Projections(
            c.width,
            c.heads,
            c.kv_heads,
            c.head_dim,
            bias=c.qkv_bias,
            output_bias=c.output_bias,
            norm_epsilon=c.norm_epsilon if c.query_key_norm else None,
            std=c.weight_std,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm_mlp = RMSNorm(c.width, c.norm_epsilon)
        self.mlp = _make_mlp(c, dtype, rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cos_sin: tuple[Array, Array],
        mask: IntervalMask,
        cached: tuple[Array, Array] | None,
        length: Array | None,
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array] | None]:
        """One block. `cached`: this layer's keys and values [B, S, K, H], to which the new ones are written at `length`."""
        a = self.attention
        q, k, v = a.heads(self.norm_attention(x))
        q, k = apply_rope(q, *cos_sin), apply_rope(k, *cos_sin)
        if cached is not None:
            assert length is not None
            k, v = (_write(old, new, length) for old, new in zip(cached, (k, v), strict=True))
            cached = (k, v)
        x = x + a.output(a.join(attention(q, k, v, mask)))
        return x + self.mlp(self.norm_mlp(x)), cached


def _make_mlp(c: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> SwiGLU | MoE:
    if c.experts:
        return MoE(
            c.width,
            c.mlp_width,
            c.experts,
            c.experts_per_token,
            std=c.weight_std,
            dtype=dtype,
            rngs=rngs,
        )
    return SwiGLU(c.width, c.mlp_width, bias=c.mlp_bias, std=c.weight_std, dtype=dtype, rngs=rngs)


def _write(
    old: Float[Array, "B S K H"], new: Float[Array, "B T K H"], at: Int[Array, "B"]
) -> Float[Array, "B S K H"]:
    return jax.vmap(lambda o, n, i: jax.lax.dynamic_update_slice_in_dim(o, n, i, axis=0))(
        old, new.astype(old.dtype), at
    )


class Decoder(nnx.Module):
    """Token embeddings to hidden states, and hidden states to logits."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        remat: Remat = "none",
        unroll: int = 1,
    ):
        c = config
        assert c.vocabulary is not None, "the recipe's tokenizer says how many tokens there are"
        self.embedding = nnx.Param(
            truncated_normal(rngs.params(), (c.vocabulary, c.width), c.embedding_std),
            axes=("vocabulary", "embed"),
        )
        put_stacks(self, c.layer_ranges, lambda rngs: DecoderBlock(c, dtype, rngs), rngs)
        self.norm = RMSNorm(c.width, c.norm_epsilon)
        if not c.tie_word_embeddings:
            axes = ("embed", "vocabulary")
            self.lm_head = Linear(
                c.width,
                c.vocabulary,
                axes=axes,
                bias=False,
                std=c.weight_std,
                dtype=dtype,
                rngs=rngs,
                float32_output=True,
            )
        self.config, self.dtype, self.remat, self.unroll = c, dtype, remat, unroll

    def embed_tokens(self, tokens: Int[AnyArray, "B T"]) -> Float[Array, "B T D"]:
        return constrain_batch(self._table()[tokens])

    def _table(self) -> Float[Array, "V D"]:
        return gather_fsdp(self.embedding[...].astype(self.dtype), ("vocabulary", "embed"))

    def __call__(
        self,
        embeddings: Float[Array, "B T D"],
        positions: Int[AnyArray, "B T"],
        mask: IntervalMask,
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Hidden states after the final norm.

        Args:
            positions: rotary position of every token.
            mask: the keys a token sees, its own the last of them; a sliding window narrows it. With a cache keys are counted over the
                cache's slots, the new tokens included.
            cache: what the rows have seen before; its `length` is left for the caller to advance, who knows how many of the new tokens of a
                row are real.
        """
        x, cache, _ = self._through(embeddings, positions, mask, cache, keep=False)
        return self.norm(x), cache

    def hidden_states(
        self, embeddings: Float[Array, "B T D"], positions: Int[AnyArray, "B T"], mask: IntervalMask
    ) -> Float[Array, "layers B T D"]:
        """The states that each block leaves, in the compute dtype and before the final norm; arguments as of a call."""
        states = self._through(embeddings, positions, mask, None, keep=True)[2]
        assert states is not None
        return states

    @jax.named_scope("decoder")
    def _through(
        self,
        embeddings: Array,
        positions: AnyArray,
        mask: IntervalMask,
        cache: KVCache | None,
        *,
        keep: bool,
    ) -> tuple[Array, KVCache | None, Array | None]:
        """Runs the blocks: the last states, the cache with what is new, and the states after each block where they are to be kept."""
        c = self.config
        cos_sin = rope_cos_sin(positions, c.head_dim, c.rope_theta, c.rope_scaling)
        mask = mask if c.sliding_window is None else mask.within(c.sliding_window)
        cached = None if cache is None else (cache.keys, cache.values)
        length = None if cache is None else cache.length

        def body(
            block: DecoderBlock, x: Array, cached: tuple[Array, Array] | None
        ) -> tuple[Array, Any]:
            x, cached = block(x, cos_sin, mask, cached, length)
            return x, (cached, x if keep else None)

        x, (cached, states) = run(
            self,
            c.layer_ranges,
            body,
            embeddings.astype(self.dtype),
            cached,
            remat=self.remat,
            unroll=self.unroll,
        )
        if cache is not None and cached is not None:
            cache = dataclasses.replace(cache, keys=cached[0], values=cached[1])
        return x, cache, states

    @jax.named_scope("lm_head")
    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Scores of the next token, float32 and never rounded to the compute dtype."""
        if not self.config.tie_word_embeddings:
            return self.lm_head(hidden)
        rows = constrain_batch(hidden).reshape(-1, hidden.shape[-1]).astype(self.dtype)
        return matmul_float32(rows, self._table().T).reshape(
            *hidden.shape[:-1], self.config.vocabulary
        )
