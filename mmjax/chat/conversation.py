"""A conversation with one model: what was said, what of it the model has read, and answers that appear token by token."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.chat.opening import ChatModel, PlainTemplate
from mmjax.data.examples import Image, SampleError, Text, Turn
from mmjax.data.text.tokenizer import SegmentTokenizer, TokenizedSegment
from mmjax.errors import InputError
from mmjax.inference import sampling
from mmjax.inference.streaming import StreamingDecoder, TextStream
from mmjax.models import parameters
from mmjax.models.config import LanguageModelConfig, VLMConfig
from mmjax.typing import Array, Float, Params, UInt8

ImageEncoder = Callable[[UInt8[np.ndarray, "h w 3"]], Float[Array, "L D"]]
"""From the pixels of one image to its visual tokens, in the compute dtype."""

FinishReason = Literal["eos", "length", "context", "interrupted"]
"""Why an answer ended: a token that ends answers, the most tokens that were allowed, a full context, or the user."""

_END_OF_THOUGHT = "</think>"


def make_image_encoder(config: VLMConfig, params: Params) -> ImageEncoder:
    """The encoder and the connector of a whole model, without its decoder.

    Args:
        params: the parameters of the encoder and the connector; others are not needed.
    """
    model_def, shapes = parameters.abstract(config)
    own = {path: value for path, value in params.items() if not path.startswith("decoder/")}

    @jax.jit
    def encode(params: Params, pixels: Array) -> Array:
        # The module has a decoder, which is not run: its zeros exist for the compiler only, which removes them.
        others = {
            path: jnp.zeros(shape.shape, shape.dtype)
            for path, shape in shapes.items()
            if path not in params
        }
        return model_def.merge(params | others).encode_images(pixels[None, None])[0, 0]

    return lambda pixels: encode(own, pixels)


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
        finish_reason: why the last answer ended.
        tokens_read: tokens of the last question that the model had not read before.
    """

    def __init__(self, model: ChatModel, settings: ChatSettings):
        """The model's dictionary of parameters is emptied of those of the decoder."""
        self.model, self.settings = model, settings
        config, params = model.config, model.params
        visual_tokens = 0
        self._encode_image: ImageEncoder | None = None
        if isinstance(config, VLMConfig):
            self._encode_image = make_image_encoder(config, params)
            visual_tokens = config.visual_tokens
        self._segment_tokenizer = SegmentTokenizer(model.tokenizer, visual_tokens)
        self._decoder = StreamingDecoder(
            LanguageModelConfig(config.decoder, compute_dtype=config.compute_dtype),
            {path: params.pop(path) for path in list(params) if path.startswith("decoder/")},
            functools.partial(
                sampling.choose, temperature=settings.temperature, top_p=settings.top_p
            ),
            vocabulary=model.tokenizer.vocabulary,
            seed=settings.seed,
        )
        self.reset()

    def reset(self) -> None:
        """Begins anew, as if nothing had been said."""
        system = self.settings.system
        self.turns: list[Turn] = [] if system is None else [Turn("system", (Text(system),))]
        self.finish_reason: FinishReason = "eos"
        self.tokens_read = 0
        self._read: TokenizedSegment | None = None  # what is in the decoder's cache
        self._prefix: tuple[Image, ...] = ()
        self._new_images: list[Image] = []  # shown since the last question
        self._visual: dict[Image, Array] = {}
        self._decoder.reset()

    @property
    def context(self) -> int | None:
        """Tokens that the model was made to read at once; None: it does not say."""
        return self.model.config.decoder.context_length

    def add_image(self, path: Path) -> None:
        """Shows an image: it stands before the next question.

        Raises InputError if the model cannot see, the image cannot be read, or it comes too late.
        """
        if self._encode_image is None:
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
        self._visual[image] = self._encode_image(pixels)
        self._new_images.append(image)

    def ask(
        self, question: str, *, should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[str]:
        """The answer, in parts as they are produced. Question and answer then belong to the conversation, unless nothing was answered.

        Args:
            should_stop: asked before each token.

        Raises:
            InputError: before any answer, if the question does not fit into the context or the template refuses it. It is then forgotten.
        """
        if self.model.images_first or not self._new_images:
            prefix, turn = (*self._prefix, *self._new_images), Turn("user", (Text(question),))
        else:
            prefix, turn = (), Turn("user", (*self._new_images, Text(f"\n{question}")))
        prompt = self._tokenize(prefix, [*self.turns, turn])
        said: list[str] = []
        for text in self._answer(prompt, should_stop):
            # White space before an answer belongs to the format, not to what is said.
            text = text if said or isinstance(self.model.template, PlainTemplate) else text.lstrip()
            if text:
                said.append(text)
                yield text
        if said or self.finish_reason != "interrupted":
            self._prefix, self._new_images = prefix, []
            self.turns += [turn, Turn("assistant", (Text("".join(said)),))]

    def _tokenize(self, images: tuple[Image, ...], turns: Sequence[Turn]) -> TokenizedSegment:
        """The whole conversation as the model reads it. Raises InputError if it cannot be written or read."""

        def without_thoughts(turn: Turn) -> Turn:
            if turn.role != "assistant":
                return turn
            text = "".join(part.text for part in turn.content if isinstance(part, Text))
            return Turn("assistant", (Text(text.rpartition(_END_OF_THOUGHT)[2].lstrip("\n")),))

        template, tokenizer = self.model.template, self.model.tokenizer
        try:
            try:
                segments = template.conversation(turns)
            except (
                SampleError
            ):  # templates of models that think write earlier answers without the thoughts
                segments = template.conversation([without_thoughts(turn) for turn in turns])
        except SampleError as error:
            raise InputError(f"The conversation cannot be written: {error}.") from None
        prompt = self._segment_tokenizer.prefix((*images, *segments))
        tokens = prompt.tokens[prompt.tokens != tokenizer.image]
        vocabulary = self.model.config.decoder.vocabulary
        if len(tokens) and tokens.max() >= vocabulary:
            raise InputError(
                f"The tokenizer does not belong to the model: it has a token {tokens.max()}, the model only {vocabulary} tokens."
            )
        if self.context is not None and len(prompt.tokens) > self.context:
            raise InputError(
                f"With this question the conversation has {len(prompt.tokens):,} tokens; the model reads at most {self.context:,}."
            )
        if not len(prompt.tokens):
            raise InputError("There is no text to continue.")
        return prompt

    def _answer(self, prompt: TokenizedSegment, should_stop: Callable[[], bool]) -> Iterator[str]:
        """The text of an answer, in parts; sets `finish_reason`."""
        stream = TextStream(self.model.tokenizer.decode)
        self.finish_reason = "interrupted"
        token = self._read_new(prompt, should_stop)
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
            if self._decoder.length == self.context:
                self.finish_reason = "context"
                break
            assert self._read is not None
            new = np.array([token], np.int32)
            tokens = np.concatenate([self._read.tokens, new])
            self._read = dataclasses.replace(self._read, tokens=tokens)
            token = self._decoder.read(new)
        yield stream.end()

    def _read_new(self, prompt: TokenizedSegment, should_stop: Callable[[], bool]) -> int:
        """Reads what of a prompt is new, but at least its last token. Returns the first token of the answer."""
        wide = self._segment_tokenizer.visual_tokens
        known = min(
            _common_prefix(self._read, prompt), self._decoder.length, len(prompt.tokens) - 1
        )
        for offset, _ in prompt.images:
            if offset < known < offset + wide:
                known = offset
        self._decoder.forget(known)
        self._read = prompt
        tokens = prompt.tokens[known:]
        self.tokens_read = len(tokens)
        images = [(offset - known, image) for offset, image in prompt.images if offset >= known]
        visual = None
        if images:
            where = np.zeros(len(tokens), bool)
            dtype = self._visual[images[0][1]].dtype
            embeddings = jnp.zeros((len(tokens), self.model.config.decoder.width), dtype)
            for offset, image in images:
                where[offset : offset + wide] = True
                embeddings = embeddings.at[offset : offset + wide].set(self._visual[image])
            visual = embeddings, where
        return self._decoder.read(tokens, visual, should_stop=should_stop)


def _common_prefix(read: TokenizedSegment | None, prompt: TokenizedSegment) -> int:
    """How many tokens two texts have in common at the beginning, images compared."""
    if read is None:
        return 0
    length = min(len(read.tokens), len(prompt.tokens))
    different = np.flatnonzero(read.tokens[:length] != prompt.tokens[:length])
    same = int(different[0]) if len(different) else length
    images = dict(read.images)
    for offset, image in prompt.images:
        if offset < same and images.get(offset) is not image:
            same = offset
    return same
