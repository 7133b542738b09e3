"""The compiled half of generation: prefixes into a KV cache, questions behind copies of it, then the likeliest token again and again.

Everything has a static shape. Rows are padded on the right; a row's tokens go to its own next free slots of the cache, so that what padding
wrote there is overwritten before anything can see it.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from mmjax.kernels.attention import IntervalMask
from mmjax.models.decoder import KVCache
from mmjax.models.vlm import VLM
from mmjax.typing import Array, Batch, Int, Params


class ModelDef(Protocol):
    """Rebuilds the model from its parameters, at trace time."""

    def merge(self, params: Params) -> VLM: ...


def read_prefixes(
    model_def: ModelDef, params: Params, batch: Batch, lengths: Int[Array, "B"]
) -> KVCache:
    """Reads the prefixes [B, P] into a cache of P slots; `lengths` of them are real."""
    model = model_def.merge(params)
    rows, slots = batch.tokens.shape
    cache = KVCache.empty(model.decoder.config, rows, slots, model.decoder.dtype)
    if slots:
        tokens, positions = jnp.asarray(batch.tokens), jnp.asarray(batch.positions)
        embeddings = (
            model.embed(batch) if batch.images.shape[1] else model.decoder.embed_tokens(tokens)
        )
        _, written = model.decoder(embeddings, positions, _causal(cache.length, slots), cache)
        assert written is not None
        cache = written
    return dataclasses.replace(cache, length=lengths)


def answer_questions(
    model_def: ModelDef,
    params: Params,
    prefixes: KVCache,
    owners: Int[Array, "B"],
    tokens: Int[Array, "B T"],
    counts: Int[Array, "B"],
    *,
    steps: int,
    ends: tuple[int, ...],
    vocabulary: int,
) -> Int[Array, "B steps"]:
    """Reads questions behind copies of their prefixes, then takes the likeliest token until every row has ended.

    Args:
        owners: of each question, the row of `prefixes` that it continues.
        tokens: padded on the right; `counts` of them are real.
        ends: tokens that end an answer.
        vocabulary: ids from here on mean nothing to the tokenizer and are never taken.

    Returns:
        The ids; whatever follows an end means nothing.
    """
    decoder = model_def.merge(params).decoder
    rows, length = tokens.shape

    def choose(hidden: Array, cache: KVCache, number: Array) -> tuple[KVCache, Array]:
        """Advances each row by `number` tokens; the likeliest token after the last of them."""
        last = jnp.take_along_axis(hidden, (number - 1)[:, None, None], axis=1)
        logits = decoder.logits(last)[:, 0]
        allowed = jnp.arange(logits.shape[-1]) < vocabulary
        chosen = jnp.argmax(jnp.where(allowed, logits, -jnp.inf), axis=-1).astype(jnp.int32)
        return dataclasses.replace(cache, length=cache.length + number), chosen

    def read(cache: KVCache, tokens: Array, number: Array) -> tuple[KVCache, Array]:
        width = tokens.shape[1]
        positions = cache.length[:, None] + jnp.arange(width, dtype=jnp.int32)
        hidden, written = decoder(
            decoder.embed_tokens(tokens), positions, _causal(cache.length, width), cache
        )
        assert written is not None
        return choose(hidden, written, number)

    def step(
        state: tuple[Array, KVCache, Array, Array, Array],
    ) -> tuple[Array, KVCache, Array, Array, Array]:
        index, cache, chosen, done, answers = state
        cache, chosen = read(cache, chosen[:, None], jnp.ones(rows, jnp.int32))
        return (
            index + 1,
            cache,
            chosen,
            done | _is_in(chosen, ends),
            answers.at[:, index].set(chosen),
        )

    cache, chosen = read(_copies(prefixes, owners, length + steps), tokens, counts)
    answers = jnp.full((rows, steps), ends[0], jnp.int32).at[:, 0].set(chosen)
    start = (jnp.int32(1), cache, chosen, _is_in(chosen, ends), answers)
    return jax.lax.while_loop(lambda state: (state[0] < steps) & ~state[3].all(), step, start)[-1]


def _causal(length: Int[Array, "B"], new: int) -> IntervalMask:
    """`new` tokens behind those in the cache: each sees all slots up to its own."""
    end = length[:, None] + jnp.arange(1, new + 1, dtype=jnp.int32)
    return IntervalMask(jnp.zeros_like(end), end)


def _copies(cache: KVCache, owners: Int[Array, "B"], more: int) -> KVCache:
    """The cache rows of the owners, with room for `more` tokens."""

    def copy(value: Array) -> Array:
        return jnp.pad(value[:, owners], ((0, 0), (0, 0), (0, more), (0, 0), (0, 0)))

    return KVCache(copy(cache.keys), copy(cache.values), cache.length[owners])


def _is_in(tokens: Int[Array, "B"], ids: tuple[int, ...]) -> Array:
    return (tokens[:, None] == jnp.array(ids)).any(axis=1)
