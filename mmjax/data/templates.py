"""How captions, questions and conversations become segments: the text around them, the special tokens, and where the loss is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mmjax.data.examples import Image, Segment, Special, Text
from mmjax.errors import InputError

Branch = tuple[Segment, ...]
Role = Literal["system", "user", "assistant"]

CAPTION_PROMPT = "a short image description:"


@dataclass(frozen=True)
class Turn:
    """What one speaker says: texts and pictures. Their loss flags are ignored; the role decides."""

    role: Role
    content: tuple[Text | Image, ...]


class Template(ABC):
    """A text format. All that the assistant says carries loss, with the token that ends it; nothing else does."""

    special_tokens: tuple[str, ...] = ()
    """Names of special tokens beyond bos and eos that the tokenizer must have."""
    stop: str = "eos"
    """Name of the special token that ends an answer: generation stops there."""

    def caption(self, text: str) -> Branch:
        """A caption of the picture in the prefix."""
        return self.question(CAPTION_PROMPT, text)

    def question(self, question: str, answer: str) -> Branch:
        """A question about the prefix, and its answer."""
        return (*self.prompt(question), *self._answer(Text(answer)))

    def prompt(self, question: str) -> Branch:
        """The question branch up to its answer: what a model is given to answer. Nothing in it carries loss."""
        return _joined((*self._opening(), *self._user(Text(question))))

    def conversation(self, turns: Sequence[Turn]) -> Branch:
        """Any number of turns in one branch; a system turn at the beginning takes the place of the template's own."""
        system: tuple[Text | Image, ...] = ()
        if turns and turns[0].role == "system":
            system, turns = turns[0].content, turns[1:]
        branch = list(self._opening(*system))
        for turn in turns:
            branch.extend(self._answer(*turn.content) if turn.role == "assistant" else self._user(*turn.content))
        return _joined(branch)

    @abstractmethod
    def _opening(self, *system: Text | Image) -> Branch:
        """What a branch begins with."""

    @abstractmethod
    def _user(self, *content: Text | Image) -> Branch:
        """What the user says, up to the place where the assistant begins."""

    def _answer(self, *content: Text | Image) -> Branch:
        return (*_with_loss(_led_by_space(content)), Special(self.stop, loss=True))


class Plain(Template):
    """No words but those of the data: the question, then the answer; a caption alone."""

    def caption(self, text: str) -> Branch:
        return (*self._opening(), Text(text, loss=True), Special(self.stop, loss=True))

    def _opening(self, *system: Text | Image) -> Branch:
        return (Special("bos"), *_without_loss(system))

    def _user(self, *content: Text | Image) -> Branch:
        return _without_loss(content)


class ShortPrompt(Plain):
    """Short prompts in the manner of InstructBLIP (arXiv:2305.06500, appendix C): they ask for a caption or a short answer."""

    def caption(self, text: str) -> Branch:
        return (*self._opening(), Text(CAPTION_PROMPT), *self._answer(Text(text)))

    def _user(self, *content: Text | Image) -> Branch:
        return (Text("Question: "), *_without_loss(content), Text(" Short answer:"))


class VicunaV1(Template):
    """The conversation format of Vicuna 1.1 and later: a system sentence, "USER: ", " ASSISTANT:", and eos after each answer.

    A SentencePiece tokenizer puts a space before the text at the beginning and after each special token. Here that space is written out,
    because `Tokenizer.encode` adds none.
    """

    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )

    def _opening(self, *system: Text | Image) -> Branch:
        return (Special("bos"), *_without_loss(_led_by_space(system or (Text(self.system),))))

    def _user(self, *content: Text | Image) -> Branch:
        return (Text(" USER: "), *_without_loss(content), Text(" ASSISTANT:"))


class Llama3(Template):
    """The format of Llama 3 Instruct: every turn has a header of special tokens and ends with <|eot_id|>. No system turn unless given."""

    special_tokens = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    stop = "<|eot_id|>"

    def _opening(self, *system: Text | Image) -> Branch:
        return (Special("bos"), *self._turn("system", system)) if system else (Special("bos"),)

    def _user(self, *content: Text | Image) -> Branch:
        return (*self._turn("user", content), *self._header("assistant"))

    def _answer(self, *content: Text | Image) -> Branch:
        return (*_with_loss(content), Special(self.stop, loss=True))

    def _turn(self, role: str, content: Sequence[Text | Image]) -> Branch:
        return (*self._header(role), *_without_loss(content), Special(self.stop))

    def _header(self, role: str) -> Branch:
        return (Special("<|start_header_id|>"), Text(role), Special("<|end_header_id|>"), Text("\n\n"))


TEMPLATES: dict[str, Template] = {"plain": Plain(), "short_prompt": ShortPrompt(), "vicuna_v1": VicunaV1(), "llama3": Llama3()}


def find_template(name: str) -> Template:
    """The template of that name. Raises InputError for an unknown one."""
    if name not in TEMPLATES:
        raise InputError(f"There is no template {name!r}; there are {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]


def prompt_of(branch: Branch) -> Branch:
    """A branch up to the first token that carries loss: what a model is given to produce the rest."""
    for index, segment in enumerate(branch):
        if not isinstance(segment, Image) and segment.loss:
            return branch[:index]
    return branch


def _with_loss(content: Sequence[Text | Image]) -> Branch:
    return tuple(Text(part.text, loss=True) if isinstance(part, Text) else part for part in content)


def _without_loss(content: Sequence[Text | Image]) -> Branch:
    return tuple(Text(part.text) if isinstance(part, Text) else part for part in content)


def _joined(branch: Sequence[Segment]) -> Branch:
    """Makes neighbouring texts with the same loss one text: they are tokenised together, as the words of one sentence."""
    joined: list[Segment] = []
    for segment in branch:
        match segment, joined[-1:]:
            case Text(text, loss), [Text(before, loss_before)] if loss == loss_before:
                joined[-1] = Text(before + text, loss)
            case _:
                joined.append(segment)
    return tuple(joined)


def _led_by_space(content: Sequence[Text | Image]) -> tuple[Text | Image, ...]:
    """Puts one space before the first part where that is a text."""
    match content:
        case (Text(text), *rest):
            return (Text(" " + text.removeprefix(" ")), *rest)
    return tuple(content)
