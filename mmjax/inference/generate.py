"""Greedy answers to batches of prompts about images; each image is encoded and read once, and all of its questions go on from there.

An `Example` without answers is the request: what its continuations share (its prefix) is read once into a KV cache, and every continuation
goes on from a copy of it, in one compiled loop that ends when every row has ended. Rows are built by the code that builds training rows,
and a continuation continues the positions of its prefix, so a model meets exactly the arrays that it was trained on.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data.examples import Example, Image, Segment
from mmjax.data.images.decode import ImageCache, Resize
from mmjax.data.packing.layout import Row, RowShape, RowWriter, stack
from mmjax.data.text.templates import find_template
from mmjax.data.text.tokenizer import SegmentTokenizer, TokenizedSegment, Tokenizer
from mmjax.errors import InputError, Preempted
from mmjax.inference.decode import Cache, VLMDef, next_token, read
from mmjax.models.config import VLMConfig
from mmjax.typing import Array, Batch, Int, Params

BUCKET = 8
"""Lengths are rounded up to a multiple of it, so that sets of slightly different lengths share one compiled program."""


@dataclasses.dataclass(frozen=True)
class _Request:
    """One question.

    Attributes:
        prefix: its number among the prefixes of a call.
        example, continuation: where its answer goes.
    """

    prefix: int
    tokens: np.ndarray
    example: int
    continuation: int


class Generator:
    """Answers prompts with models of one config. Its compiled programs serve trained and untrained parameters alike."""

    def __init__(
        self,
        model_def: VLMDef,
        config: VLMConfig,
        tokenizer: Tokenizer,
        *,
        template: str = "plain",
        resize: Resize = "stretch",
        batch_size: int = 32,
        max_new_tokens: int = 32,
    ):
        """
        Args:
            model_def: of `config` (`models.parameters.abstract`).
            template: of the data that the model was trained on; it names the token that ends an answer.
            resize: of the same data; how an image becomes a square.
            batch_size: questions answered at once.
            max_new_tokens: after which an answer is cut.

        Raises:
            InputError: a number is not positive, or the tokenizer lacks the template's last token.
        """
        if batch_size < 1 or max_new_tokens < 1:
            raise InputError(
                f"batch_size and max_new_tokens must be positive, not {batch_size} and {max_new_tokens}."
            )
        self.config = config
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self._segment_tokenizer = SegmentTokenizer(tokenizer, config.visual_tokens)
        self._images = ImageCache()
        self._resize = resize
        stop = find_template(template, tokenizer).stop
        self._ends = frozenset(
            {tokenizer.eos, tokenizer.eos if stop == "eos" else tokenizer.special(stop)}
        )
        self._read = jax.jit(functools.partial(read_prefixes, model_def))
        self._answer = jax.jit(
            functools.partial(
                answer_questions,
                model_def,
                steps=max_new_tokens,
                ends=tuple(sorted(self._ends)),
                vocabulary=tokenizer.vocabulary,
            )
        )

    def answer(self, params: Params, prefix: Sequence[Segment], prompt: Sequence[Segment]) -> str:
        """The answer to one prompt, such as prefix=(Image(path),) and prompt=template.prompt("what is this?"). Raises as `answer_all`."""
        return self.answer_all(params, [Example(tuple(prefix), (tuple(prompt),), "prompt")])[0][0]

    def answer_all(
        self,
        params: Params,
        examples: Sequence[Example],
        *,
        should_stop: Callable[[], bool] = lambda: False,
        on_answers: Callable[[int], None] = lambda _: None,
    ) -> list[list[str]]:
        """Answers every continuation of every example.

        Args:
            examples: continuations are prompts, up to where the answer begins. A continuation with images of its own ends with text.
            should_stop: asked before each batch.
            on_answers: told after each batch how many more questions are answered.

        Returns:
            For each example, the answers to its continuations, without white space around them.

        Raises:
            InputError: an image cannot be read, or a prompt ends without text.
            Preempted: should_stop() was true.
        """
        answers = self.answer_tokens(
            params, examples, should_stop=should_stop, on_answers=on_answers
        )
        return [
            [self.tokenizer.decode(ids).strip() for ids in continuations]
            for continuations in answers
        ]

    def answer_tokens(
        self,
        params: Params,
        examples: Sequence[Example],
        *,
        should_stop: Callable[[], bool] = lambda: False,
        on_answers: Callable[[int], None] = lambda _: None,
    ) -> list[list[list[int]]]:
        """As `answer_all`, but the ids of the answers, without the one that ends them."""
        answers: list[list[list[int]]] = [
            [[] for _ in example.continuations] for example in examples
        ]
        prefixes, requests = self._requests(examples)
        if not requests:
            return answers
        batches = list(_batches(requests, self.batch_size))
        # The static shape of all batches of this call.
        rows = max(len({request.prefix for request in batch}) for batch in batches)
        question = round_up(max(len(request.tokens) for request in requests))
        shape = RowShape(
            text_length=round_up(max(prefix.text for prefix in prefixes)),
            images_per_row=max(len(prefix.images) for prefix in prefixes),
            visual_tokens=self.config.visual_tokens,
            image_size=self.config.vision.image_size,
            pad=self.tokenizer.pad,
            resize=self._resize,
        )
        for batch in batches:
            if should_stop():
                raise Preempted("Stopped while answering questions.")
            tokens = self._answer_batch(params, prefixes, batch, rows, shape, question).tolist()
            for request, ids in zip(batch, tokens, strict=False):
                end = next((n for n, token in enumerate(ids) if token in self._ends), len(ids))
                answers[request.example][request.continuation] = ids[:end]
            on_answers(len(batch))
        return answers

    def _requests(
        self, examples: Sequence[Example]
    ) -> tuple[list[TokenizedSegment], list[_Request]]:
        """Prefixes, and the questions that continue them. What a continuation has up to its last image becomes a prefix of its own."""
        prefixes: list[TokenizedSegment] = []
        requests: list[_Request] = []
        for number, example in enumerate(examples):
            shared = len(prefixes)
            prefixes.append(self._segment_tokenizer.prefix(example.prefix))
            for continuation_number, continuation in enumerate(example.continuations):
                images = [
                    index for index, part in enumerate(continuation) if isinstance(part, Image)
                ]
                cut = images[-1] + 1 if images else 0
                owner = len(prefixes) if cut else shared
                if cut:
                    own = (*example.prefix, *continuation[:cut])
                    prefixes.append(self._segment_tokenizer.prefix(own))
                tokens = self._segment_tokenizer.prefix(continuation[cut:]).tokens
                if not len(tokens):
                    raise InputError(
                        f"The prompt of {example.id} ends without text, so there is nothing to answer."
                    )
                requests.append(_Request(owner, tokens, number, continuation_number))
        return prefixes, requests

    def _answer_batch(
        self,
        params: Params,
        prefixes: Sequence[TokenizedSegment],
        batch: Sequence[_Request],
        prefix_rows: int,
        prefix_shape: RowShape,
        question_length: int,
    ) -> np.ndarray:
        """[batch_size, max_new_tokens] token ids; rows beyond the batch mean nothing."""

        def load(image: Image) -> np.ndarray:
            size, resize = prefix_shape.image_size, prefix_shape.resize
            return self._images.load(image.source, size, resize=resize)

        used = list(dict.fromkeys(request.prefix for request in batch))
        rows = [Row.empty(prefix_shape)] * prefix_rows
        lengths = np.zeros(prefix_rows, np.int32)
        for row, number in enumerate(used):
            writer = RowWriter(prefix_shape, load)
            _, error = writer.write(prefixes[number])
            if error is not None:
                raise InputError(f"An image cannot be used: {error}.")
            rows[row], lengths[row] = writer.row, len(prefixes[number].tokens)
        tokens = np.full((self.batch_size, question_length), self.tokenizer.pad, np.int32)
        counts, owners = np.ones(self.batch_size, np.int32), np.zeros(self.batch_size, np.int32)
        for row, request in enumerate(batch):
            tokens[row, : len(request.tokens)] = request.tokens
            counts[row], owners[row] = len(request.tokens), used.index(request.prefix)
        cache = self._read(params, stack(rows), lengths)
        return np.asarray(self._answer(params, cache, owners, tokens, counts))


def _batches(requests: Sequence[_Request], size: int) -> Iterator[list[_Request]]:
    """Batches of up to `size` questions and not many more prefixes than usual, for every batch has room for as many.

    The questions of a prefix stay together where they fit: reading an image twice costs more than some rows of padding.
    """
    groups = [
        list(group) for _, group in itertools.groupby(requests, key=lambda request: request.prefix)
    ]
    most = 1 + size * len(groups) // len(requests)
    batch: list[_Request] = []
    prefixes = 0
    for group in groups:
        if batch and (len(batch) + len(group) > size or prefixes == most):
            yield batch
            batch, prefixes = [], 0
        batch, prefixes = batch + group, prefixes + 1
        while len(batch) > size:
            yield batch[:size]
            batch, prefixes = batch[size:], 1
    if batch:
        yield batch


def round_up(length: int) -> int:
    """The next multiple of BUCKET."""
    return -(-length // BUCKET) * BUCKET


def read_prefixes(
    model_def: VLMDef, params: Params, batch: Batch, lengths: Int[Array, "B"]
) -> Cache:
    """Reads the prefixes [B, P] into a cache of P slots; `lengths` of them are real."""
    model = model_def.merge(params)
    decoder = model.decoder
    apart = all(stack.size <= decoder.unroll for stack in decoder.config.layer_ranges)
    cache = Cache.empty(decoder.config, decoder.dtype, *batch.tokens.shape, apart=apart)
    if not batch.tokens.shape[1]:
        return cache
    images = batch.images.shape[1]
    embeddings = model.embed(batch) if images else decoder.embed_tokens(jnp.asarray(batch.tokens))
    return read(decoder, cache, embeddings, lengths)[0]


def answer_questions(
    model_def: VLMDef,
    params: Params,
    prefixes: Cache,
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

    def advance(
        cache: Cache, tokens: Array, counts: Array, done: Array
    ) -> tuple[Cache, Array, Array]:
        """The cache with these tokens, the likeliest next ones, and which rows have ended."""
        cache, hidden = read(decoder, cache, decoder.embed_tokens(tokens), counts)
        chosen = next_token(decoder, hidden, lambda logits: jnp.argmax(logits, -1), vocabulary)
        return cache, chosen, done | (chosen[:, None] == jnp.array(ends)).any(axis=1)

    def step(state: tuple[Array, Cache, Array, Array, Array]) -> tuple[Any, ...]:
        index, cache, chosen, done, answers = state
        one = jnp.ones(rows, jnp.int32)
        cache, chosen, done = advance(cache, chosen[:, None], one, done)
        return index + 1, cache, chosen, done, answers.at[:, index].set(chosen)

    cache = prefixes.take_rows(owners, length + steps)
    cache, chosen, done = advance(cache, tokens, counts, jnp.zeros(rows, bool))
    answers = jnp.full((rows, steps), ends[0], jnp.int32).at[:, 0].set(chosen)
    start = (jnp.int32(1), cache, chosen, done, answers)
    return jax.lax.while_loop(lambda state: (state[0] < steps) & ~state[3].all(), step, start)[-1]
