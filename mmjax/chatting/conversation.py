"""A conversation: turns, what of them the model has read, and answers that appear piece by piece."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from mmjax import sampling
from mmjax.chatting.continuation import Continuation
from mmjax.chatting.eyes import Encode, make_encode
from mmjax.chatting.opening import ChatModel
from mmjax.chatting.reader import Reader
from mmjax.chatting.stream import TextStream
from mmjax.data.encoding import Encoded, Encoder
from mmjax.data.examples import Image, SampleError, Segment, Text
from mmjax.data.template import Turn
from mmjax.errors import InputError
from mmjax.models.config import LanguageModelConfig, VLMConfig
from mmjax.typing import Array

Outcome = Literal["ended", "cut", "full", "stopped"]
"""How an answer ended: by itself, after the allowed number of tokens, because the context is full, or because the user wanted it."""

_END_OF_THOUGHT = "</think>"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How answers are made.

    Attributes:
        temperature, top_p: see `sampling.choose`.
        seed: of chance; the same conversation with the same seed has the same answers.
        max_new_tokens: after which an answer is cut.
        system: what the model is told before the conversation; None: what the template says, if anything.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int = 512
    system: str | None = None


class Conversation:
    """Questions and answers with one model, which reads only what it has not read yet.

    Attributes:
        turns: what was said so far.
        outcome: how the last answer ended.
        tokens_read: tokens of the last question that the model had not read before.
    """

    def __init__(self, model: ChatModel, settings: Settings):
        """The model's dictionary of parameters is emptied."""
        self.model, self.settings = model, settings
        visual_tokens = 0
        self._encode: Encode | None = None
        if isinstance(model.config, VLMConfig):
            self._encode = make_encode(model.config, model.params)
            visual_tokens = model.config.visual_tokens
        self._encoder = Encoder(model.tokenizer, visual_tokens)
        self._reader = _make_reader(model, settings)
        self.reset()

    def reset(self) -> None:
        """Begins anew, as if nothing had been said."""
        system = self.settings.system
        self.turns: list[Turn] = [] if system is None else [Turn("system", (Text(system),))]
        self.outcome: Outcome = "ended"
        self.tokens_read = 0
        self._read: Encoded | None = None
        self._prefix: tuple[Image, ...] = ()
        self._pictures: list[Image] = []
        self._visual: dict[Image, Array] = {}
        self._reader.reset()

    @property
    def context(self) -> int | None:
        """Tokens that the model was made to read at once; None: it does not say."""
        return self.model.config.decoder.context_length

    def add_picture(self, path: Path) -> None:
        """Shows a picture: it stands before the next question.

        Raises InputError if the model cannot see, the picture cannot be read, or it comes too late.
        """
        if self._encode is None:
            raise InputError("This model is a decoder without an encoder: it cannot look at pictures.")
        if self.model.pictures_first and any(turn.role == "user" for turn in self.turns):
            raise InputError("This model was trained with pictures before the first question; begin anew to show it another one.")
        if path.exists() and not path.is_file():  # a pipe would block for ever
            raise InputError(f"{path} is not a file.")
        try:
            pixels = self.model.load_picture(path)
        except SampleError as error:
            raise InputError(f"The picture cannot be used: {error}.") from None
        image = Image(path)
        self._visual[image] = self._encode(pixels)
        self._pictures.append(image)

    def ask(self, question: str, *, should_stop: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """The answer, in pieces as they are produced. Question and answer then belong to the conversation, unless nothing was answered.

        Args:
            should_stop: asked before each token.

        Raises:
            InputError: before any answer, if the question does not fit into the context or the template refuses it. It is then forgotten.
        """
        prefix, turn = self._turn(question)
        piece = self._encoder.prefix((*prefix, *self._segments([*self.turns, turn])))
        self._check(piece)
        said: list[str] = []
        for text in self._answer(piece, should_stop):
            # White space before an answer belongs to the format, not to what is said.
            text = text if said or isinstance(self.model.template, Continuation) else text.lstrip()
            if text:
                said.append(text)
                yield text
        if said or self.outcome != "stopped":
            self._prefix, self._pictures = prefix, []
            self.turns += [turn, Turn("assistant", (Text("".join(said)),))]

    def _turn(self, question: str) -> tuple[tuple[Image, ...], Turn]:
        """Pictures before the whole text, and what the user says now."""
        if self.model.pictures_first or not self._pictures:
            return (*self._prefix, *self._pictures), Turn("user", (Text(question),))
        return (), Turn("user", (*self._pictures, Text(f"\n{question}")))

    def _segments(self, turns: Sequence[Turn]) -> tuple[Segment, ...]:
        try:
            try:
                return self.model.template.conversation(turns)
            except SampleError:  # templates of models that think write answers without the thoughts once they are given
                return self.model.template.conversation([_without_thoughts(turn) for turn in turns])
        except SampleError as error:
            raise InputError(f"The conversation cannot be written: {error}.") from None

    def _check(self, piece: Encoded) -> None:
        tokens, vocabulary = piece.tokens[piece.tokens != self.model.tokenizer.image], self.model.config.decoder.vocabulary
        if len(tokens) and tokens.max() >= vocabulary:
            raise InputError(
                f"The tokenizer does not belong to the model: it has a token {tokens.max()}, the model only {vocabulary} tokens."
            )
        if self.context is not None and len(piece.tokens) > self.context:
            raise InputError(
                f"With this question the conversation has {len(piece.tokens):,} tokens; the model reads at most {self.context:,}."
            )
        if not len(piece.tokens):
            raise InputError("There is no text to continue.")

    def _answer(self, piece: Encoded, should_stop: Callable[[], bool]) -> Iterator[str]:
        """Pieces of text; sets `outcome`."""
        stream = TextStream(self.model.tokenizer.decode)
        self.outcome = "stopped"
        token = self._read_new(piece, should_stop)
        for count in range(1, self.settings.max_new_tokens + 1):
            if should_stop():
                break
            if token in self.model.ends:
                self.outcome = "ended"
                break
            yield stream.add(token)
            if count == self.settings.max_new_tokens:
                self.outcome = "cut"
                break
            if self._reader.length == self.context:
                self.outcome = "full"
                break
            token = self._reader.read(self._remember(token))
        yield stream.end()

    def _read_new(self, piece: Encoded, should_stop: Callable[[], bool]) -> int:
        """Reads what of a piece is new, but at least its last token. Returns the first token of the answer."""
        known = min(_common(self._read, piece), self._reader.length, len(piece.tokens) - 1)
        for offset, _ in piece.images:
            if offset < known < offset + self._encoder.visual_tokens:
                known = offset
        self._reader.forget(known)
        self.tokens_read = len(piece.tokens) - known
        self._read = piece
        return self._reader.read(piece.tokens[known:], self._embeddings(piece, known), should_stop=should_stop)

    def _remember(self, token: int) -> np.ndarray:
        assert self._read is not None
        tokens = np.array([token], np.int32)
        self._read = dataclasses.replace(self._read, tokens=np.concatenate([self._read.tokens, tokens]))
        return tokens

    def _embeddings(self, piece: Encoded, known: int) -> tuple[Array, np.ndarray] | None:
        """Visual tokens among those behind the first `known`: their embeddings, zeros elsewhere, and where they stand."""
        images = [(offset - known, image) for offset, image in piece.images if offset >= known]
        if not images:
            return None
        count, wide = len(piece.tokens) - known, self._encoder.visual_tokens
        where = np.zeros(count, bool)
        found = jnp.zeros((count, self.model.config.decoder.width), self._visual[images[0][1]].dtype)
        for offset, image in images:
            where[offset : offset + wide] = True
            found = found.at[offset : offset + wide].set(self._visual[image])
        return found, where


def _make_reader(model: ChatModel, settings: Settings) -> Reader:
    config = model.config
    decoder = LanguageModelConfig(config.decoder, compute_dtype=config.compute_dtype)
    params = {path: model.params.pop(path) for path in list(model.params) if path.startswith("decoder/")}
    choose = functools.partial(sampling.choose, temperature=settings.temperature, top_p=settings.top_p)
    return Reader(decoder, params, choose, vocabulary=model.tokenizer.vocabulary, seed=settings.seed)


def _common(read: Encoded | None, piece: Encoded) -> int:
    """How many tokens two pieces have in common at the beginning, pictures compared."""
    if read is None:
        return 0
    length = min(len(read.tokens), len(piece.tokens))
    different = np.flatnonzero(read.tokens[:length] != piece.tokens[:length])
    same = int(different[0]) if len(different) else length
    pictures = dict(read.images)
    return min([same, *(offset for offset, image in piece.images if offset < same and pictures.get(offset) is not image)])


def _without_thoughts(turn: Turn) -> Turn:
    if turn.role != "assistant":
        return turn
    text = "".join(part.text for part in turn.content if isinstance(part, Text))
    return Turn("assistant", (Text(text.rpartition(_END_OF_THOUGHT)[2].lstrip("\n")),))
