"""Generation of mmjax, as its two ways in do it: many rows in one compiled loop, and one row token by token."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from decode_shapes import Shape

from mmjax.inference.generate import answer_questions, read_prefixes
from mmjax.inference.streaming import StreamingDecoder
from mmjax.models import parameters
from mmjax.typing import Array, Batch, Params
from mmjax.weights.pretrained_protocol import stored

Sample = dict[str, float]
"""Seconds by what they were spent on: "prompt", "token" (each of the new ones) and "whole"."""


def draw(shape: Shape, dtype: str) -> Params:
    """Random parameters as a published model's are held: matrices in the dtype, vectors in float32."""
    config = shape.model(dtype)
    kept = stored(config, parameters.abstract(config)[1], jnp.dtype(dtype))

    @jax.jit
    def make(key: Array) -> Params:
        return {
            path: value.astype(kept[path].dtype)
            for path, value in parameters.initialize(config, key).items()
        }

    return jax.block_until_ready(make(jax.random.key(0)))


def prompts(shape: Shape, batch: int) -> np.ndarray:
    """[batch, prompt] int32, seeded; the first of them are the same in every batch."""
    return np.stack(
        [
            np.random.default_rng(row).integers(1, shape.decoder.vocabulary, shape.prompt)
            for row in range(batch)
        ]
    ).astype(np.int32)


class Loop:
    """`mmjax.inference.generate`: prompts go into a cache, then one program takes the likeliest token again and again."""

    def __init__(self, shape: Shape, params: Params, batch: int, dtype: str):
        self.shape, self.params, self.batch = shape, params, batch
        model_def, _ = parameters.abstract(shape.model(dtype))
        vocabulary = shape.decoder.vocabulary
        self._read = jax.jit(functools.partial(read_prefixes, model_def))
        # An end that no token has: every row is as long as any other.
        decode = functools.partial(
            answer_questions, model_def, steps=shape.new, ends=(vocabulary,), vocabulary=vocabulary
        )
        self._decode = jax.jit(decode)
        self._tokens = prompts(shape, batch)
        # The last token of a prompt is the question: what is timed as a token includes reading it, and not the prompt again.
        self._batch = jax.device_put(_text(self._tokens[:, :-1]))
        self._lengths = jnp.full(batch, shape.prompt - 1, jnp.int32)
        self._question = jnp.asarray(self._tokens[:, -1:])
        self._owners, self._counts = jnp.arange(batch, dtype=jnp.int32), jnp.ones(batch, jnp.int32)
        self.tokens: np.ndarray | None = None

    def sample(self) -> Sample:
        """One generation."""
        begun = time.perf_counter()
        cache = jax.block_until_ready(self._read(self.params, self._batch, self._lengths))
        read = time.perf_counter()
        answers = jax.block_until_ready(
            self._decode(self.params, cache, self._owners, self._question, self._counts)
        )
        done = time.perf_counter()
        self.tokens = np.asarray(answers)
        return {
            "prompt": read - begun,
            "token": (done - read) / self.shape.new,
            "whole": done - begun,
        }


def _text(tokens: np.ndarray) -> Batch:
    """Rows of one segment without images."""
    rows, length = tokens.shape

    def whole(row: np.ndarray | int) -> np.ndarray:
        return np.broadcast_to(row, (rows, length)).astype(np.int32)

    return Batch(
        tokens=tokens,
        targets=whole(-1),
        segment_ids=whole(1),
        prefix_segment_ids=whole(0),
        positions=whole(np.arange(length)),
        images=np.zeros((rows, 0, 1, 1, 3), np.uint8),
        image_mask=np.zeros((rows, 0), bool),
        visual_embedding_index=whole(-1),
    )


class Chat:
    """`mmjax.chat`: one row, layers held apart, every token comes back to the host."""

    def __init__(self, shape: Shape, params: Params, dtype: str):
        """params: are copied, as the decoder holds them in another form."""
        self.shape = shape
        choose = lambda logits, key: jnp.argmax(logits).astype(jnp.int32)  # noqa: E731
        self._decoder = StreamingDecoder(
            shape.model(dtype), dict(params), choose, vocabulary=shape.decoder.vocabulary, seed=0
        )
        self._tokens = prompts(shape, 1)[0]
        self.tokens: np.ndarray | None = None

    def sample(self) -> Sample:
        """One generation."""
        begun = time.perf_counter()
        self._decoder.forget(0)
        chosen = [self._decoder.read(self._tokens)]
        read = time.perf_counter()
        for _ in range(self.shape.new - 1):
            chosen.append(self._decoder.read(np.array(chosen[-1:], np.int32)))
        done = time.perf_counter()
        self.tokens = np.array([chosen])
        return {
            "prompt": read - begun,
            "token": (done - read) / max(self.shape.new - 1, 1),
            "whole": done - begun,
        }


def bandwidth(size: int, rounds: int = 7) -> float:
    """Bytes a second that the device reads where nothing else bounds it: the sum over `size` bytes, the best of some rounds."""
    values = jax.block_until_ready(jax.jit(lambda: jnp.ones(size // 4, jnp.float32))())
    total = jax.jit(jnp.sum)
    total(values).block_until_ready()
    best = float("inf")
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(4):
            out = total(values)
        out.block_until_ready()
        best = min(best, (time.perf_counter() - begun) / 4)
    return size / best
