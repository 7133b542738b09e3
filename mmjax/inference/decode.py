"""The core of generation: a KV cache, tokens that are read behind those in it, and the next token, chosen by a function of the logits.

`generate` answers batches of questions with it, `streaming` writes one answer token by token.

Everything has a static shape. Rows are padded on the right; a row's tokens go to its own next free slots of the cache, so what padding
wrote there is overwritten before anything can see it.

Layers are stacked in one array, or apart in one array each. A compiled loop copies a layer's slice of a stacked array before it uses it,
and of a cache it copies the result back; layers apart are read and written in place. So a cache is apart wherever the layers are unrolled,
which costs nothing. Parameters are taken apart only where nobody else holds them stacked: there would be a second copy of them in memory
otherwise, and unrolling many layers takes long to compile.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from mmjax.kernels.attention import IntervalMask
from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, LanguageModelConfig
from mmjax.models.decoder import Decoder, KVCache
from mmjax.models.vlm import VLM
from mmjax.typing import Array, Float, Int, Params

Choose = Callable[[Float[Array, "B V"]], Int[Array, "B"]]
"""From the logits of each row to its next token; those of tokens that may not be chosen are -inf."""


class VLMDef(Protocol):
    """Rebuilds the model from its parameters, at trace time."""

    def merge(self, params: Params) -> VLM: ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens that the rows have read, in the compute dtype.

    Attributes:
        keys, values: one array [layers, B, S, K, H], or for layers apart an array [B, S, K, H] for each of them.
        length: [B] int32, slots in use.
    """

    keys: list[Array]
    values: list[Array]
    length: Int[Array, "B"]

    @classmethod
    def empty(
        cls, config: DecoderConfig, dtype: jnp.dtype, rows: int, slots: int, *, apart: bool
    ) -> "Cache":
        """A cache that holds no tokens, with an array for each layer if they are to be apart."""

        def zeros() -> list[Array]:
            shape = (rows, slots, config.kv_heads, config.head_dim)
            if apart:
                return [jnp.zeros(shape, dtype) for _ in range(config.depth)]
            return [jnp.zeros((config.depth, *shape), dtype)]

        return cls(zeros(), zeros(), jnp.zeros(rows, jnp.int32))

    def take_rows(self, rows: Int[Array, "b"], more: int) -> "Cache":
        """Copies of some rows, with room for so many more tokens."""
        keys, values = (
            [grow(array[..., rows, :, :, :], array.shape[-3] + more) for array in arrays]
            for arrays in (self.keys, self.values)
        )
        return Cache(keys, values, self.length[rows])


def grow(array: Float[Array, "... S K H"], slots: int) -> Float[Array, "... slots K H"]:
    """Keys or values with room for so many tokens."""
    return jnp.pad(
        array, [(0, 0)] * (array.ndim - 3) + [(0, slots - array.shape[-3]), (0, 0), (0, 0)]
    )


def read(
    decoder: Decoder, cache: Cache, embeddings: Float[Array, "B T D"], counts: Int[Array, "B"]
) -> tuple[Cache, Float[Array, "B D"]]:
    """Reads tokens behind those in the cache.

    Args:
        embeddings: of tokens and of images; `counts` of each row are real, the others padding.

    Returns:
        The cache, advanced by the real tokens, and the hidden states of the last of them.
    """
    place = jnp.arange(embeddings.shape[1], dtype=jnp.int32)
    start, last = cache.length[:, None], jnp.maximum(counts - 1, 0)[:, None]
    end = start + place + 1  # each token sees all slots up to its own
    # Padding is no further on than the last token: some rotary frequencies depend on the largest position.
    positions = start + jnp.minimum(place, last)
    mask = IntervalMask(jnp.zeros_like(end), end)
    apart = cache.keys[0].ndim == 4
    # Stacked here and taken apart by unrolled layers, they are not copied: the compiler sees through a stack (not a concatenation).
    keys, values = (
        jnp.stack(arrays) if apart else arrays[0] for arrays in (cache.keys, cache.values)
    )
    hidden, written = decoder(embeddings, positions, mask, KVCache(keys, values, cache.length))
    assert written is not None
    new_keys, new_values = (
        [array[layer] for layer in range(len(array))] if apart else [array]
        for array in (written.keys, written.values)
    )
    cache = Cache(new_keys, new_values, cache.length + counts)
    return cache, jnp.take_along_axis(hidden, last[..., None], axis=1)[:, 0]


def next_token(
    decoder: Decoder, hidden: Float[Array, "B D"], choose: Choose, vocabulary: int
) -> Int[Array, "B"]:
    """The token after the last one of each row.

    Args:
        vocabulary: ids from here on mean nothing to the tokenizer and are never chosen.
    """
    logits = decoder.logits(hidden[:, None])[:, 0]
    allowed = jnp.arange(logits.shape[-1]) < vocabulary
    return choose(jnp.where(allowed, logits, -jnp.inf)).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class ApartModelDef:
    """A `ModelDef` for parameters whose layers are apart: one array a layer, as a tuple, where stacked parameters have one array."""

    model_def: parameters.ModelDef

    def merge(self, params: dict[str, Any]) -> Any:
        whole = {
            path: jnp.stack(value) if isinstance(value, tuple) else value
            for path, value in params.items()
        }
        return self.model_def.merge(whole)


def take_apart(
    config: LanguageModelConfig, params: Params
) -> tuple[LanguageModelConfig, ApartModelDef, dict[str, Any]]:
    """A decoder in the form that is fastest for one row: layers apart and unrolled; on CPUs, a matrix of its own for a tied head.

    Args:
        params: of a LanguageModel; the dictionary is emptied, so that every parameter is in memory once.

    Returns:
        The config, the model_def and the parameters in that form.
    """
    decoder = config.decoder
    if decoder.tie_word_embeddings and jax.default_backend() == "cpu":
        # The product of one row with a transposed table takes a CPU about ten times as long as with a matrix.
        decoder = dataclasses.replace(decoder, tie_word_embeddings=False)
        params["decoder/lm_head/kernel"] = jnp.array(params["decoder/embedding"].T)
    config = dataclasses.replace(config, decoder=decoder, unroll=decoder.depth, remat="none")
    axes = parameters.logical_axes(config)
    apart: dict[str, Any] = {}
    for path in sorted(params):
        value = params.pop(path)
        apart[path] = (
            tuple(value[layer] for layer in range(value.shape[0]))
            if axes[path][0] == "layers"
            else value
        )
    return config, ApartModelDef(parameters.abstract(config)[0]), apart
