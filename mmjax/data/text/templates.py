"""Templates by name: the text around captions, questions and conversations, and the special tokens."""

from abc import abstractmethod
from collections.abc import Sequence

from mmjax.data.examples import (
    CAPTION_PROMPT,
    Continuation,
    Image,
    Role,
    Special,
    Template,
    Text,
    Turn,
    joined,
    led_by_space,
    prompt_of,
    unlearned,
    with_loss,
    without_loss,
)
from mmjax.data.text.chat_template import ChatTemplate
from mmjax.data.text.tokenizer import HuggingFaceTokenizer, Tokenizer
from mmjax.errors import InputError

__all__ = [
    "CHAT",
    "TEMPLATES",
    "Continuation",
    "Role",
    "Template",
    "Turn",
    "find_template",
    "prompt_of",
]

CHAT = "chat"
"""The template that a published tokenizer brings along."""


class Framed(Template):
    """A format that writes something at the beginning and something around each turn."""

    def question(self, question: str, answer: str) -> Continuation:
        return (*self.prompt(question), *self.answer(Text(answer)))

    def prompt(self, question: str) -> Continuation:
        return joined((*self.opening(), *self.user(Text(question))))

    def conversation(self, turns: Sequence[Turn]) -> Continuation:
        system: tuple[Text | Image, ...] = ()
        if turns and turns[0].role == "system":
            system, turns = turns[0].content, turns[1:]
        continuation = list(self.opening(*system))
        for turn in turns:
            if turn.role != "assistant":
                continuation.extend(self.user(*turn.content))
            elif turn.loss:
                continuation.extend(self.answer(*turn.content))
            else:
                continuation.extend(unlearned(self.answer(*turn.content)))
        return joined(continuation)

    @abstractmethod
    def opening(self, *system: Text | Image) -> Continuation:
        """What a continuation begins with."""

    @abstractmethod
    def user(self, *content: Text | Image) -> Continuation:
        """What the user says, up to the place where the assistant begins."""

    def answer(self, *content: Text | Image) -> Continuation:
        """What the assistant says, and the token that ends it."""
        return (*with_loss(led_by_space(content)), Special(self.stop, loss=True))


class Plain(Framed):
    """No words but those of the data: the question, then the answer; a caption alone."""

    def caption(self, text: str) -> Continuation:
        return (*self.opening(), Text(text, loss=True), Special(self.stop, loss=True))

    def opening(self, *system: Text | Image) -> Continuation:
        return (Special("bos"), *without_loss(system))

    def user(self, *content: Text | Image) -> Continuation:
        return without_loss(content)


class ShortPrompt(Plain):
    """Short prompts in the manner of InstructBLIP (arXiv:2305.06500, appendix C): they ask for a caption or a short answer."""

    def caption(self, text: str) -> Continuation:
        return (*self.opening(), Text(CAPTION_PROMPT), *self.answer(Text(text)))

    def user(self, *content: Text | Image) -> Continuation:
        return (Text("Question: "), *without_loss(content), Text(" Short answer:"))


class VicunaV1(Framed):
    """The conversation format of Vicuna 1.1 and later: a system sentence, "USER: ", " ASSISTANT:", and eos after each answer.

    A SentencePiece tokenizer puts a space before the text at the beginning and after each special token. Here that space is written out,
    because `Tokenizer.encode` adds none.
    """

    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )

    def opening(self, *system: Text | Image) -> Continuation:
        return (Special("bos"), *without_loss(led_by_space(system or (Text(self.system),))))

    def user(self, *content: Text | Image) -> Continuation:
        return (Text(" USER: "), *without_loss(content), Text(" ASSISTANT:"))


class Llama3(Framed):
    """The format of Llama 3 Instruct: every turn has a header of special tokens and ends with <|eot_id|>. No system turn unless given."""

    special_tokens = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    stop = "<|eot_id|>"

    def opening(self, *system: Text | Image) -> Continuation:
        begin = Special("bos")
        if not system:
            return (begin,)
        return (begin, *self._header("system"), *without_loss(system), Special(self.stop))

    def user(self, *content: Text | Image) -> Continuation:
        said = (*self._header("user"), *without_loss(content), Special(self.stop))
        return (*said, *self._header("assistant"))

    def answer(self, *content: Text | Image) -> Continuation:
        return (*with_loss(content), Special(self.stop, loss=True))

    def _header(self, role: str) -> Continuation:
        return (
            Special("<|start_header_id|>"),
            Text(role),
            Special("<|end_header_id|>"),
            Text("\n\n"),
        )


TEMPLATES: dict[str, Template] = {
    "plain": Plain(),
    "short_prompt": ShortPrompt(),
    "vicuna_v1": VicunaV1(),
    "llama3": Llama3(),
}
"""Those that need no tokenizer."""


def find_template(
    name: str, tokenizer: Tokenizer | None = None, *, labels: bool = True
) -> Template:
    """The template of that name.

    Args:
        name: one of `TEMPLATES`, or `CHAT`, which is the tokenizer's own.
        tokenizer: of the model that reads the text.
        labels: whether something is to be learned from the text; see `ChatTemplate`.

    Raises:
        InputError: an unknown name, or a tokenizer without a template of its own, or with one that cannot be used.
    """
    if name == CHAT:
        if not isinstance(tokenizer, HuggingFaceTokenizer):
            raise InputError(
                f"The template {CHAT!r} is the one that a published tokenizer brings along; a tokenizer of words has none."
            )
        return ChatTemplate(tokenizer, labels)
    if name not in TEMPLATES:
        raise InputError(
            f"There is no template {name!r}; there are {', '.join(TEMPLATES)}, {CHAT}."
        )
    return TEMPLATES[name]
