"""Greedy answers to prompts about images: each image is encoded and read once, and all of its questions go on from there.

An `Example` without answers is the request: what its continuations share (its prefix) is read once into a KV cache, and every
continuation continues a
copy of it. The rows are built by the code that builds training rows, and a continuation continues the positions of its prefix, so a
model meets
exactly the arrays that it was trained on.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from mmjax.data.examples import Example, Image, Segment
from mmjax.data.images.decode import ImageCache, Resize
from mmjax.data.packing.layout import Row, RowShape, RowWriter, stack
from mmjax.data.text.templates import find_template
from mmjax.data.text.tokenizer import SegmentTokenizer, TokenizedSegment, Tokenizer
from mmjax.errors import InputError, Preempted
from mmjax.inference.decode import ModelDef, answer_questions, read_prefixes
from mmjax.models.config import VLMConfig
from mmjax.typing import Params

BUCKET = 8  # lengths are rounded up to a multiple of it, so that sets of slightly different lengths share one compiled program


@dataclasses.dataclass(frozen=True)
class _Request:
    """One question: the number of its prefix among the prefixes of a call, its tokens, and where its answer goes."""

    prefix: int
    tokens: np.ndarray
    place: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """The static shape of all batches of a call: prefixes per batch, and tokens of a question."""

    prefixes: int
    prefix: RowShape
    question: int


class Generator:
    """Answers prompts with models of one model_def. Its compiled programs serve trained and untrained parameters alike."""

    def __init__(
        self,
        model_def: ModelDef,
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
                f"batch_size ({batch_size}) and max_new_tokens ({max_new_tokens}) must be positive."
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
        ends = tuple(sorted(self._ends))
        decode = functools.partial(
            answer_questions,
            model_def,
            steps=max_new_tokens,
            ends=ends,
            vocabulary=tokenizer.vocabulary,
        )
        self._decode = jax.jit(decode)

    def answer(self, params: Params, prefix: Sequence[Segment], prompt: Sequence[Segment]) -> str:
        """The answer to one prompt, such as prefix=(Image(path),) and prompt=template.prompt("what is this?"). Raises as `answer_all`."""
        return self.answer_all(params, [Example(tuple(prefix), (tuple(prompt),), "prompt")])[0][0]

    def answer_all(
        self,
        params: Params,
        examples: Sequence[Example],
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[list[str]]:
        """Answers every continuation of every example.

        Args:
            examples: continuations are prompts, up to where the answer begins. A continuation with images of its own ends with text.
            should_stop: asked before each batch.

        Returns:
            For each example, the answers to its continuations, without white space around them.

        Raises:
            InputError: an image cannot be read, or a prompt ends without text.
            Preempted: should_stop() was true.
        """
        answers = self.answer_tokens(params, examples, should_stop=should_stop)
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
    ) -> list[list[list[int]]]:
        """As `answer_all`, but the ids of the answers, without the one that ends them."""
        prefixes, requests = self._requests(examples)
        answers: list[list[list[int]]] = [
            [[] for _ in example.continuations] for example in examples
        ]
        if not requests:
            return answers
        batches = list(_split(requests, self.batch_size))
        sizes = self._sizes(prefixes, requests, batches)
        for batch in batches:
            if should_stop():
                raise Preempted("Stopped while answering questions.")
            ids = self._answer_batch(params, prefixes, batch, sizes).tolist()
            for row, request in enumerate(batch):
                example, continuation = request.place
                answers[example][continuation] = self._cut(ids[row])
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
            for branch_number, continuation in enumerate(example.continuations):
                cut = max(
                    (
                        index + 1
                        for index, segment in enumerate(continuation)
                        if isinstance(segment, Image)
                    ),
                    default=0,
                )
                owner = len(prefixes) if cut else shared
                if cut:
                    prefixes.append(
                        self._segment_tokenizer.prefix((*example.prefix, *continuation[:cut]))
                    )
                tokens = self._segment_tokenizer.prefix(continuation[cut:]).tokens
                if not len(tokens):
                    raise InputError(
                        f"The prompt of {example.id} ends without text, so there is nothing to answer."
                    )
                requests.append(_Request(owner, tokens, (number, branch_number)))
        return prefixes, requests

    def _sizes(
        self,
        prefixes: Sequence[TokenizedSegment],
        requests: Sequence[_Request],
        batches: Sequence[Sequence[_Request]],
    ) -> _Sizes:
        shape = RowShape(
            text_length=_rounded(max(prefix.text for prefix in prefixes)),
            images_per_row=max(len(prefix.images) for prefix in prefixes),
            visual_tokens=self.config.visual_tokens,
            image_size=self.config.vision.image_size,
            pad=self.tokenizer.pad,
            resize=self._resize,
        )
        most = max(len({request.prefix for request in batch}) for batch in batches)
        return _Sizes(most, shape, _rounded(max(len(request.tokens) for request in requests)))

    def _answer_batch(
        self,
        params: Params,
        prefixes: Sequence[TokenizedSegment],
        batch: Sequence[_Request],
        sizes: _Sizes,
    ) -> np.ndarray:
        """[batch_size, max_new_tokens] token ids; rows beyond the batch mean nothing."""
        used = list(dict.fromkeys(request.prefix for request in batch))
        rows = [self._row(prefixes[number], sizes.prefix) for number in used]
        rows += [Row.empty(sizes.prefix)] * (sizes.prefixes - len(used))
        lengths = np.zeros(sizes.prefixes, np.int32)
        lengths[: len(used)] = [len(prefixes[number].tokens) for number in used]
        tokens = np.full((self.batch_size, sizes.question), self.tokenizer.pad, np.int32)
        counts, owners = np.ones(self.batch_size, np.int32), np.zeros(self.batch_size, np.int32)
        for place, request in enumerate(batch):
            tokens[place, : len(request.tokens)] = request.tokens
            counts[place], owners[place] = len(request.tokens), used.index(request.prefix)
        cache = self._read(params, stack(rows), lengths)
        return np.asarray(self._decode(params, cache, owners, tokens, counts))

    def _row(self, prefix: TokenizedSegment, shape: RowShape) -> Row:
        writer = RowWriter(
            shape,
            lambda image: self._images.load(image.source, shape.image_size, resize=shape.resize),
        )
        _, error = writer.write(prefix)
        if error is not None:
            raise InputError(f"An image cannot be used: {error}.")
        return writer.row

    def _cut(self, ids: list[int]) -> list[int]:
        """The ids before the one that ends the answer."""
        end = next((place for place, token in enumerate(ids) if token in self._ends), len(ids))
        return ids[:end]


def _split(requests: Sequence[_Request], size: int) -> Iterator[list[_Request]]:
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


def _rounded(length: int) -> int:
    return -(-length // BUCKET) * BUCKET
