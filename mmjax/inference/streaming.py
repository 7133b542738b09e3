"""One conversation, token by token: a decoder that reads tokens and says which one comes next, and tokens as text.

There is one row, so each step waits for the weights to come from memory; what else it does must cost nothing beside that. So layers are
held apart (`decode.take_apart`), and the compiler writes to the caches in place. Shapes are static: texts are padded to the next power of
two, and the cache doubles when it is full.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.inference.decode import Cache, VLMDef, grow, next_token, read, take_apart
from mmjax.models.config import LanguageModelConfig
from mmjax.typing import Array, Bool, Float, Int, Params

REPLACEMENT = "�"


class TextStream:
    """Turns tokens into text, as soon as it is certain.

    A character may consist of several tokens, and what a token reads as may depend on the one before it. So text is held back while it ends
    in the middle of a character, and tokens are decoded together with those that the last text came from.
    """

    def __init__(self, decode: Callable[[Iterable[int]], str]):
        """decode: of a tokenizer; bytes that are no character become U+FFFD."""
        self._decode = decode
        self._shown: list[int] = []
        self._held: list[int] = []

    def add(self, token: int) -> str:
        """What can be shown now that this token is known; often nothing."""
        self._held.append(token)
        text = self._pending()
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._shown, self._held = self._held, []
        return text

    def end(self) -> str:
        """What was held back, when nothing follows. Half a character is dropped."""
        text = self._pending().rstrip(REPLACEMENT)
        self._shown, self._held = [], []
        return text

    def _pending(self) -> str:
        return self._decode([*self._shown, *self._held])[len(self._decode(self._shown)) :]


INITIAL_SLOTS = 512
"""Tokens that a cache has room for at first."""
MIN_CHUNK, MAX_CHUNK = 32, 512
"""Tokens that are read at once: several are padded to a power of two from the first on, and longer texts read in chunks of the second."""

ChooseOne = Callable[[Float[Array, "V"], Array], Int[Array, ""]]
"""From logits and a key of jax.random to a token, such as `sampling.choose` with its settings."""


class StreamingDecoder:
    """A decoder and the tokens that it has read.

    Attributes:
        length: how many tokens it has read.
    """

    def __init__(
        self,
        config: LanguageModelConfig,
        params: Params,
        choose: ChooseOne,
        *,
        vocabulary: int,
        seed: int,
    ):
        """
        Args:
            params: of a LanguageModel; the dictionary is emptied, so that every parameter is in memory once.
            vocabulary: ids from here on mean nothing to the tokenizer and are never chosen.
            seed: of the keys that `choose` is given.
        """
        self._config, model_def, self._params = take_apart(config, params)
        self._key = jax.random.key(seed)
        advance = functools.partial(_advance, model_def, choose, vocabulary)
        self._advance = jax.jit(advance, donate_argnums=(1,))
        self.reset()

    def reset(self) -> None:
        """Forgets everything, also how many tokens were chosen: the same texts get the same answers again."""
        dtype = jnp.dtype(self._config.compute_dtype)
        cache = Cache.empty(self._config.decoder, dtype, 1, INITIAL_SLOTS, apart=True)
        self._layers = [cache.keys, cache.values]
        self.length = 0
        self._chosen = 0

    def forget(self, length: int) -> None:
        """Forgets what was read after the first `length` tokens."""
        assert 0 <= length <= self.length, (length, self.length)
        self.length = length

    def read(
        self,
        tokens: Int[np.ndarray, "T"],
        visual: tuple[Float[Array, "T D"], Bool[np.ndarray, "T"]] | None = None,
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> int:
        """Reads tokens, and chooses the one that comes next.

        Args:
            tokens: at least one.
            visual: embeddings from images, and where they stand in the place of tokens.
            should_stop: asked between the chunks of a long text. If so, `length` says how many were read, and the result means nothing.
        """
        assert len(tokens)
        chosen = 0
        for start in range(0, len(tokens), MAX_CHUNK):
            if start and should_stop():
                break
            chunk = tokens[start : start + MAX_CHUNK]
            count = len(chunk)
            width = 1 if count == 1 else max(MIN_CHUNK, _power_of_two(count))
            padding = width - count
            images = None
            if visual is not None:
                embeddings, where = (of_text[start : start + MAX_CHUNK] for of_text in visual)
                images = (
                    jnp.pad(embeddings, ((0, padding), (0, 0)))[None],
                    np.pad(where, (0, padding))[None],
                )
            needed = self.length + width
            if needed > self._layers[0][0].shape[1]:
                for arrays in self._layers:  # one layer at a time: only one is in memory twice
                    for layer, array in enumerate(arrays):
                        arrays[layer] = grow(array, max(INITIAL_SLOTS, _power_of_two(needed)))
            state = np.array([self.length, count, self._chosen], np.int32)
            row = np.pad(chunk, (0, padding))[None]
            self._layers, token = self._advance(
                self._params, self._layers, row, images, state, self._key
            )
            chosen = int(token)  # waits for it, so that a stop is noticed between two chunks
            self.length += count
        self._chosen += 1
        return chosen


def _power_of_two(number: int) -> int:
    """The least that is not smaller."""
    return 1 << (number - 1).bit_length()


def _advance(
    model_def: VLMDef,
    choose: ChooseOne,
    vocabulary: int,
    params: dict[str, Any],
    layers: list[list[Array]],
    tokens: Int[Array, "1 T"],
    visual: tuple[Float[Array, "1 T D"], Bool[Array, "1 T"]] | None,
    state: Int[Array, "3"],
    key: Array,
) -> tuple[list[list[Array]], Int[Array, ""]]:
    """Reads tokens behind those in the cache and chooses the next.

    Args:
        layers: keys of each layer, and values of each.
        state: tokens in the cache, real ones of `tokens`, chosen before; in one array, which is handed over faster than three.
    """
    length, count, chosen = state
    decoder = model_def.merge(params).decoder
    embeddings = decoder.embed_tokens(tokens)
    if visual is not None:
        embeddings = jnp.where(visual[1][..., None], visual[0], embeddings)
    cache, hidden = read(
        decoder, Cache(layers[0], layers[1], length[None]), embeddings, count[None]
    )
    key = jax.random.fold_in(key, chosen)
    token = next_token(decoder, hidden, lambda logits: choose(logits[0], key)[None], vocabulary)
    return [cache.keys, cache.values], token[0]
