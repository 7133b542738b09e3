"""Images as embeddings: encoder and connector of a whole model, without its decoder.

A conversation: turns, what of them the model has read, and answers that appear piece by piece.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.chat.opening import ChatModel, PlainTemplate
from mmjax.data.examples import Image, SampleError, Segment, Text, Turn
from mmjax.data.text.tokenizer import SegmentTokenizer, TokenizedSegment
from mmjax.errors import InputError
from mmjax.inference import sampling
from mmjax.inference.streaming import Reader, TextStream
from mmjax.models import parameters
from mmjax.models.config import LanguageModelConfig, VLMConfig
from mmjax.typing import Array, Float, Params, UInt8

Encode = Callable[[UInt8[np.ndarray, "h w 3"]], Float[Array, "L D"]]


def make_encode(config: VLMConfig, params: Params) -> Encode:
    """The function from the pixels of one image to its visual tokens, in the compute dtype.

    Args:
        params: the parameters of the encoder and the connector; others are not needed.
    """
    model_def, shapes = parameters.abstract(config)
    seeing = {path: value for path, value in params.items() if not path.startswith("decoder/")}

    @jax.jit
    def encode(params: Params, pixels: Array) -> Array:
        # The module has a decoder, which is not asked: its zeros exist for the compiler only, which leaves them out.
        others = {
            path: jnp.zeros(shape.shape, shape.dtype)
            for path, shape in shapes.items()
            if path not in params
        }
        return model_def.merge(params | others).encode_images(pixels[None, None])[0, 0]

    return lambda pixels: encode(seeing, pixels)


FinishReason = Literal["eos", "length", "context", "interrupted"]
"""How an answer ended: by itself, after the allowed number of tokens, because the context is full, or because the user wanted it."""

_END_OF_THOUGHT = "</think>"


@dataclasses.dataclass(frozen=True)
class ChatSettings:
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
        finish_reason: how the last answer ended.
        tokens_read: tokens of the last question that the model had not read before.
    """

    def __init__(self, model: ChatModel, settings: ChatSettings):
        """The model's dictionary of parameters is emptied."""
        self.model, self.settings = model, settings
        visual_tokens = 0
        self._encode: Encode | None = None
        if isinstance(model.config, VLMConfig):
            self._encode = make_encode(model.config, model.params)
            visual_tokens = model.config.visual_tokens
        self._segment_tokenizer = SegmentTokenizer(model.tokenizer, visual_tokens)
        self._reader = _make_reader(model, settings)
        self.reset()

    def reset(self) -> None:
        """Begins anew, as if nothing had been said."""
        system = self.settings.system
        self.turns: list[Turn] = [] if system is None else [Turn("system", (Text(system),))]
        self.finish_reason: FinishReason = "eos"
        self.tokens_read = 0
        self._read: TokenizedSegment | None = None
        self._prefix: tuple[Image, ...] = ()
        self._images: list[Image] = []
        self._visual: dict[Image, Array] = {}
        self._reader.reset()

    @property
    def context(self) -> int | None:
        """Tokens that the model was made to read at once; None: it does not say."""
        return self.model.config.decoder.context_length

    def add_image(self, path: Path) -> None:
        """Shows an image: it stands before the next question.

        Raises InputError if the model cannot see, the image cannot be read, or it comes too late.
        """
        if self._encode is None:
            raise InputError(
                "This model is a decoder without an encoder: it cannot look at images."
            )
        if self.model.images_first and any(turn.role == "user" for turn in self.turns):
            raise InputError(
                "This model was trained with images before the first question; begin anew to show it another one."
            )
        if path.exists() and not path.is_file():  # a pipe would block for ever
            raise InputError(f"{path} is not a file.")
        try:
            pixels = self.model.load_image(path)
        except SampleError as error:
            raise InputError(f"The image cannot be used: {error}.") from None
        image = Image(path)
        self._visual[image] = self._encode(pixels)
        self._images.append(image)

    def ask(
        self, question: str, *, should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[str]:
        """The answer, in pieces as they are produced. Question and answer then belong to the conversation, unless nothing was answered.

        Args:
            should_stop: asked before each token.

        Raises:
            InputError: before any answer, if the question does not fit into the context or the template refuses it. It is then forgotten.
        """
        prefix, turn = self._turn(question)
        piece = self._segment_tokenizer.prefix((*prefix, *self._segments([*self.turns, turn])))
        self._check(piece)
        said: list[str] = []
        for text in self._answer(piece, should_stop):
            # White space before an answer belongs to the format, not to what is said.
            text = text if said or isinstance(self.model.template, PlainTemplate) else text.lstrip()
            if text:
                said.append(text)
                yield text
        if said or self.finish_reason != "interrupted":
            self._prefix, self._images = prefix, []
            self.turns += [turn, Turn("assistant", (Text("".join(said)),))]

    def _turn(self, question: str) -> tuple[tuple[Image, ...], Turn]:
        """Images before the whole text, and what the user says now."""
        if self.model.images_first or not self._images:
            return (*self._prefix, *self._images), Turn("user", (Text(question),))
        return (), Turn("user", (*self._images, Text(f"\n{question}")))

    def _segments(self, turns: Sequence[Turn]) -> tuple[Segment, ...]:
        try:
            try:
                return self.model.template.conversation(turns)
            except SampleError:  # templates of models that think write answers without the thoughts once they are given
                return self.model.template.conversation([_without_thoughts(turn) for turn in turns])
        except SampleError as error:
            raise InputError(f"The conversation cannot be written: {error}.") from None

    def _check(self, piece: TokenizedSegment) -> None:
        tokens, vocabulary = (
            piece.tokens[piece.tokens != self.model.tokenizer.image],
            self.model.config.decoder.vocabulary,
        )
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

    def _answer(self, piece: TokenizedSegment, should_stop: Callable[[], bool]) -> Iterator[str]:
        """Pieces of text; sets `finish_reason`."""
        stream = TextStream(self.model.tokenizer.decode)
        self.finish_reason = "interrupted"
        token = self._read_new(piece, should_stop)
        for count in range(1, self.settings.max_new_tokens + 1):
            if should_stop():
                break
            if token in self.model.ends:
                self.finish_reason = "eos"
                break
            yield stream.add(token)
            if count == self.settings.max_new_tokens:
                self.finish_reason = "length"
                break
            if self._reader.length == self.context:
                self.finish_reason = "context"
                break
            token = self._reader.read(self._remember(token))
        yield stream.end()

    def _read_new(self, piece: TokenizedSegment, should_stop: Callable[[], bool]) -> int:
        """Reads what of a piece is new, but at least its last token. Returns the first token of the answer."""
        known = min(_common(self._read, piece), self._reader.length, len(piece.tokens) - 1)
        for offset, _ in piece.images:
            if offset < known < offset + self._segment_tokenizer.visual_tokens:
                known = offset
        self._reader.forget(known)
        self.tokens_read = len(piece.tokens) - known
        self._read = piece
        return self._reader.read(
            piece.tokens[known:], self._embeddings(piece, known), should_stop=should_stop
        )

    def _remember(self, token: int) -> np.ndarray:
        assert self._read is not None
        tokens = np.array([token], np.int32)
        self._read = dataclasses.replace(
            self._read, tokens=np.concatenate([self._read.tokens, tokens])
        )
        return tokens

    def _embeddings(self, piece: TokenizedSegment, known: int) -> tuple[Array, np.ndarray] | None:
        """Visual tokens among those behind the first `known`: their embeddings, zeros elsewhere, and where they stand."""
        images = [(offset - known, image) for offset, image in piece.images if offset >= known]
        if not images:
            return None
        count, wide = len(piece.tokens) - known, self._segment_tokenizer.visual_tokens
        where = np.zeros(count, bool)
        found = jnp.zeros(
            (count, self.model.config.decoder.width), self._visual[images[0][1]].dtype
        )
        for offset, image in images:
            where[offset : offset + wide] = True
            found = found.at[offset : offset + wide].set(self._visual[image])
        return found, where


def _make_reader(model: ChatModel, settings: ChatSettings) -> Reader:
    config = model.config
    decoder = LanguageModelConfig(config.decoder, compute_dtype=config.compute_dtype)
    params = {
        path: model.params.pop(path) for path in list(model.params) if path.startswith("decoder/")
    }
    choose = functools.partial(
        sampling.choose, temperature=settings.temperature, top_p=settings.top_p
    )
    return Reader(
        decoder, params, choose, vocabulary=model.tokenizer.vocabulary, seed=settings.seed
    )


def _common(read: TokenizedSegment | None, piece: TokenizedSegment) -> int:
    """How many tokens two pieces have in common at the beginning, images compared."""
    if read is None:
        return 0
    length = min(len(read.tokens), len(piece.tokens))
    different = np.flatnonzero(read.tokens[:length] != piece.tokens[:length])
    same = int(different[0]) if len(different) else length
    images = dict(read.images)
    return min(
        [
            same,
            *(
                offset
                for offset, image in piece.images
                if offset < same and images.get(offset) is not image
            ),
        ]
    )


def _without_thoughts(turn: Turn) -> Turn:
    if turn.role != "assistant":
        return turn
    text = "".join(part.text for part in turn.content if isinstance(part, Text))
    return Turn("assistant", (Text(text.rpartition(_END_OF_THOUGHT)[2].lstrip("\n")),))
