"""Text that appears while its tokens are produced.

A decoder that reads tokens into a cache and says what comes next.

There is one row, so each step waits for the weights to come from memory; what else it does must cost nothing beside that. So the layers
are held apart, not stacked (a loop over stacked layers copies each before its use), as are their caches, and the compiler writes to the
caches in place. Shapes are static: texts are padded to the next power of two, and the cache doubles when it is full.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.kernels.attention import IntervalMask
from mmjax.models import parameters
from mmjax.models.config import LanguageModelConfig
from mmjax.models.decoder import KVCache
from mmjax.typing import Array, Bool, Float, Int, Params

REPLACEMENT = "�"


class TextStream:
    """Turns tokens into text, as soon as it is certain.

    A character may consist of several tokens, and what a token reads as may depend on the one before it. So text is held back while it ends
    in the middle of a character, and tokens are decoded together with those that the last piece of text came from.
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
        """What was held back, when nothing follows. Half a character is left out."""
        text = self._pending().rstrip(REPLACEMENT)
        self._shown, self._held = [], []
        return text

    def _pending(self) -> str:
        return self._decode([*self._shown, *self._held])[len(self._decode(self._shown)) :]


SLOTS = 512
"""Tokens that a cache has room for at first."""
LEAST, MOST = 32, 512
"""Tokens that are read at once: padded to the least, or else to a power of two; longer texts are read in parts of the most."""

Choose = Callable[[Array, Array], Array]


class Reader:
    """A decoder and the tokens that it has read.

    Attributes:
        length: how many tokens it has read.
    """

    def __init__(
        self,
        config: LanguageModelConfig,
        params: Params,
        choose: Choose,
        *,
        vocabulary: int,
        seed: int,
    ):
        """
        Args:
            params: of a LanguageModel; the dictionary is emptied, so that every parameter is in memory once.
            choose: (logits [V], key) to a token, such as `sampling.choose` with its settings.
            vocabulary: ids from here on mean nothing to the tokenizer and are never chosen.
            seed: of the keys that `choose` is given.
        """
        self._config, params = _for_steps(config, params)
        model_def, _ = parameters.abstract(self._config)
        self._params = _apart(params, parameters.logical_axes(self._config))
        self._key = jax.random.key(seed)
        self._advance = jax.jit(
            functools.partial(_advance, model_def, choose, vocabulary), donate_argnums=(1,)
        )
        self.reset()

    def reset(self) -> None:
        """Forgets everything, also how many tokens were chosen: the same texts get the same answers again."""
        shape = (1, SLOTS, self._config.decoder.kv_heads, self._config.decoder.head_dim)
        dtype = jnp.dtype(self._config.compute_dtype)
        self._caches = [
            (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
            for _ in range(self._config.decoder.layers)
        ]
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
            should_stop: asked between the parts of a long text. If so, `length` says how many were read, and the result means nothing.
        """
        assert len(tokens)
        chosen = 0
        for start in range(0, len(tokens), MOST):
            if start and should_stop():
                break
            part = slice(start, start + MOST)
            chosen = self._read_part(
                tokens[part], None if visual is None else (visual[0][part], visual[1][part])
            )
        self._chosen += 1
        return chosen

    def _read_part(self, tokens: np.ndarray, visual: tuple[Array, np.ndarray] | None) -> int:
        count = len(tokens)
        width = 1 if count == 1 else max(LEAST, _power_of_two(count))
        more = width - count
        if visual is not None:
            visual = (
                jnp.pad(visual[0], ((0, more), (0, 0)))[None],
                np.pad(visual[1], (0, more))[None],
            )
        self._grow(self.length + width)
        state = np.array([self.length, count, self._chosen], np.int32)
        self._caches, chosen = self._advance(
            self._params, self._caches, np.pad(tokens, (0, more))[None], visual, state, self._key
        )
        self.length += count
        return int(chosen)

    def _grow(self, needed: int) -> None:
        """Sees to it that the cache has room for so many tokens."""
        slots = self._caches[0][0].shape[1]
        if needed > slots:
            more = max(SLOTS, _power_of_two(needed)) - slots
            for layer, cache in enumerate(
                self._caches
            ):  # one at a time, so that only one is in memory twice
                keys, values = (
                    jnp.pad(value, ((0, 0), (0, more), (0, 0), (0, 0))) for value in cache
                )
                self._caches[layer] = (keys, values)


def _power_of_two(number: int) -> int:
    """The least that is not smaller."""
    return 1 << (number - 1).bit_length()


def _for_steps(config: LanguageModelConfig, params: Params) -> tuple[LanguageModelConfig, Params]:
    """The same decoder in the form that is fastest for one row."""
    decoder = config.decoder
    if decoder.tie_word_embeddings and jax.default_backend() == "cpu":
        # Products of one row with a transposed table are slow on CPUs, ten times slower than with a matrix of their own.
        decoder = dataclasses.replace(decoder, tie_word_embeddings=False)
        params["decoder/lm_head/kernel"] = jnp.array(params["decoder/embedding"].T)
    return dataclasses.replace(config, decoder=decoder, unroll=decoder.layers, remat="none"), params


def _apart(params: Params, axes: dict[str, tuple[str | None, ...]]) -> dict[str, Any]:
    """Stacked parameters as one array for each layer."""
    found: dict[str, Any] = {}
    for path in sorted(params):
        value = params.pop(path)
        found[path] = (
            tuple(value[layer] for layer in range(value.shape[0]))
            if axes[path][0] == "layers"
            else value
        )
    return found


def _advance(
    model_def: parameters.ModelDef,
    choose: Choose,
    vocabulary: int,
    params: dict[str, Any],
    caches: list[tuple[Array, Array]],
    tokens: Int[Array, "1 T"],
    visual: tuple[Float[Array, "1 T D"], Bool[Array, "1 T"]] | None,
    state: Int[Array, "3"],
    key: Array,
) -> tuple[list[tuple[Array, Array]], Int[Array, ""]]:
    """Reads tokens behind those in the caches and chooses the next. `state`: tokens in the caches, real ones of `tokens`, chosen before."""
    length, count, chosen = state
    # Stacked here and taken apart by the unrolled layers, the arrays are never copied: the compiler sees through it.
    whole = {
        path: jnp.stack(value) if isinstance(value, tuple) else value
        for path, value in params.items()
    }
    decoder = model_def.merge(whole).decoder
    keys, values = (jnp.stack(part) for part in zip(*caches, strict=True))
    place = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    end = (length + place + 1)[None]
    positions = (length + jnp.minimum(place, count - 1))[
        None
    ]  # padding is no further on: some rotations depend on the last position
    embeddings = decoder.embed_tokens(tokens)
    if visual is not None:
        embeddings = jnp.where(visual[1][..., None], visual[0], embeddings)
    cache = KVCache(keys, values, length[None])
    hidden, written = decoder(embeddings, positions, IntervalMask(jnp.zeros_like(end), end), cache)
    assert written is not None
    logits = decoder.logits(jax.lax.dynamic_slice_in_dim(hidden, count - 1, 1, axis=1))[0, 0]
    logits = jnp.where(jnp.arange(logits.shape[-1]) < vocabulary, logits, -jnp.inf)
    token = choose(logits, jax.random.fold_in(key, chosen))
    return [(written.keys[layer], written.values[layer]) for layer in range(len(caches))], token
