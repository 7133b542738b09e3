"""Greedy answers to prompts about pictures: each picture is encoded and read once, and all of its questions go on from there.

An `Example` without answers is the request: what its branches share (its prefix) is read once into a KV cache, every branch continues a copy of
it. The rows are built by the code that builds training rows, and a branch continues the positions of its prefix, so a model meets exactly the
arrays that it was trained on.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data.encoding import Encoded, Encoder
from mmjax.data.examples import Example, Image, Segment
from mmjax.data.images import ImageCache
from mmjax.data.layout import Row, RowShape, RowWriter, stack
from mmjax.data.templates import find_template
from mmjax.data.tokenizer import Tokenizer
from mmjax.errors import InputError, Preempted
from mmjax.kernels.attention import IntervalMask
from mmjax.models.config import VLMConfig
from mmjax.models.decoder import KVCache
from mmjax.models.vlm import VLM
from mmjax.typing import Array, Batch, Int, Params

BUCKET = 8  # lengths are rounded up to a multiple of it, so that sets of slightly different lengths share one compiled program


class Structure(Protocol):
    """Rebuilds the model from its parameters, at trace time."""

    def merge(self, params: Params) -> VLM: ...


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
    """Answers prompts with one model. Compiled programs are kept: use one for all parameters of a shape, such as trained and untrained ones."""

    def __init__(
        self,
        structure: Structure,
        config: VLMConfig,
        tokenizer: Tokenizer,
        *,
        template: str = "plain",
        batch_size: int = 32,
        max_new_tokens: int = 32,
    ):
        """
        Args:
            structure: of `config` (`models.parameters.abstract`).
            template: of the data that the model was trained on; it names the token that ends an answer.
            batch_size: questions answered at once.
            max_new_tokens: after which an answer is cut.

        Raises:
            InputError: a number is not positive, or the tokenizer lacks the template's last token.
        """
        if batch_size < 1 or max_new_tokens < 1:
            raise InputError(f"batch_size ({batch_size}) and max_new_tokens ({max_new_tokens}) must be positive.")
        self.config = config
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self._encoder = Encoder(tokenizer, config.visual_tokens)
        self._pictures = ImageCache()
        stop = find_template(template).stop
        self._ends = frozenset({tokenizer.eos, tokenizer.eos if stop == "eos" else tokenizer.special(stop)})
        self._read = jax.jit(functools.partial(_read_prefixes, structure))
        self._decode = jax.jit(
            functools.partial(
                _answer_questions, structure, steps=max_new_tokens, ends=tuple(sorted(self._ends)), vocabulary=tokenizer.vocabulary
            )
        )

    def answer(self, params: Params, prefix: Sequence[Segment], prompt: Sequence[Segment]) -> str:
        """The answer to one prompt, such as prefix=(Image(path),) and prompt=template.prompt("what is this?"). Raises as `answer_all`."""
        return self.answer_all(params, [Example(tuple(prefix), (tuple(prompt),), "prompt")])[0][0]

    def answer_all(
        self, params: Params, examples: Sequence[Example], *, should_stop: Callable[[], bool] = lambda: False
    ) -> list[list[str]]:
        """Answers every branch of every example.

        Args:
            examples: branches are prompts, up to where the answer begins. A branch with pictures of its own ends with text.
            should_stop: asked before each batch.

        Returns:
            For each example, the answers to its branches, without white space around them.

        Raises:
            InputError: a picture cannot be read, or a prompt ends without text.
            Preempted: should_stop() was true.
        """
        answers = self.answer_tokens(params, examples, should_stop=should_stop)
        return [[self.tokenizer.decode(ids).strip() for ids in branches] for branches in answers]

    def answer_tokens(
        self, params: Params, examples: Sequence[Example], *, should_stop: Callable[[], bool] = lambda: False
    ) -> list[list[list[int]]]:
        """As `answer_all`, but the ids of the answers, without the one that ends them."""
        prefixes, requests = self._requests(examples)
        answers: list[list[list[int]]] = [[[] for _ in example.branches] for example in examples]
        if not requests:
            return answers
        batches = list(_split(requests, self.batch_size))
        sizes = self._sizes(prefixes, requests, batches)
        for batch in batches:
            if should_stop():
                raise Preempted("Stopped while answering questions.")
            ids = self._answer_batch(params, prefixes, batch, sizes).tolist()
            for row, request in enumerate(batch):
                example, branch = request.place
                answers[example][branch] = self._cut(ids[row])
        return answers

    def _requests(self, examples: Sequence[Example]) -> tuple[list[Encoded], list[_Request]]:
        """Prefixes, and the questions that continue them. What a branch has up to its last picture becomes a prefix of its own."""
        prefixes: list[Encoded] = []
        requests: list[_Request] = []
        for number, example in enumerate(examples):
            shared = len(prefixes)
            prefixes.append(self._encoder.prefix(example.prefix))
            for branch_number, branch in enumerate(example.branches):
                cut = max((index + 1 for index, segment in enumerate(branch) if isinstance(segment, Image)), default=0)
                owner = len(prefixes) if cut else shared
                if cut:
                    prefixes.append(self._encoder.prefix((*example.prefix, *branch[:cut])))
                tokens = self._encoder.prefix(branch[cut:]).tokens
                if not len(tokens):
                    raise InputError(f"The prompt of {example.id} ends without text, so there is nothing to answer.")
                requests.append(_Request(owner, tokens, (number, branch_number)))
        return prefixes, requests

    def _sizes(self, prefixes: Sequence[Encoded], requests: Sequence[_Request], batches: Sequence[Sequence[_Request]]) -> _Sizes:
        shape = RowShape(
            text_length=_rounded(max(prefix.text for prefix in prefixes)),
            images_per_row=max(len(prefix.images) for prefix in prefixes),
            visual_tokens=self.config.visual_tokens,
            image_size=self.config.vision.image_size,
            pad=self.tokenizer.pad,
        )
        most = max(len({request.prefix for request in batch}) for batch in batches)
        return _Sizes(most, shape, _rounded(max(len(request.tokens) for request in requests)))

    def _answer_batch(self, params: Params, prefixes: Sequence[Encoded], batch: Sequence[_Request], sizes: _Sizes) -> np.ndarray:
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

    def _row(self, prefix: Encoded, shape: RowShape) -> Row:
        writer = RowWriter(shape, lambda image: self._pictures.load(image.source, shape.image_size))
        _, error = writer.write(prefix)
        if error is not None:
            raise InputError(f"A picture cannot be used: {error}.")
        return writer.row

    def _cut(self, ids: list[int]) -> list[int]:
        """The ids before the one that ends the answer."""
        end = next((place for place, token in enumerate(ids) if token in self._ends), len(ids))
        return ids[:end]


def _split(requests: Sequence[_Request], size: int) -> Iterator[Sequence[_Request]]:
    for start in range(0, len(requests), size):
        yield requests[start : start + size]


def _rounded(length: int) -> int:
    return -(-length // BUCKET) * BUCKET


def _read_prefixes(structure: Structure, params: Params, batch: Batch, lengths: Int[Array, "B"]) -> KVCache:
    """Reads the prefixes [B, P] into a cache of P slots; `lengths` of them are real."""
    model = structure.merge(params)
    rows, slots = batch.tokens.shape
    cache = KVCache.empty(model.decoder.config, rows, slots, model.decoder.dtype)
    if slots:
        embeddings = model.embed(batch) if batch.images.shape[1] else model.decoder.embed_tokens(batch.tokens)
        _, written = model.decoder(embeddings, batch.positions, _causal(cache.length, slots), cache)
        assert written is not None
        cache = written
    return dataclasses.replace(cache, length=lengths)


def _answer_questions(
    structure: Structure,
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
    decoder = structure.merge(params).decoder
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
        hidden, written = decoder(decoder.embed_tokens(tokens), positions, _causal(cache.length, width), cache)
        assert written is not None
        return choose(hidden, written, number)

    def step(state: tuple[Array, KVCache, Array, Array, Array]) -> tuple[Array, KVCache, Array, Array, Array]:
        index, cache, chosen, done, answers = state
        cache, chosen = read(cache, chosen[:, None], jnp.ones(rows, jnp.int32))
        return index + 1, cache, chosen, done | _is_in(chosen, ends), answers.at[:, index].set(chosen)

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
