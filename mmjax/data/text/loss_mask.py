"""Conversations as a chat template writes them, cut into segments.

A conversation is rendered with a sentinel in the place of what each turn says, and then cut at the sentinels: between them stands what
the template
writes, in which names of special tokens are special tokens; what people wrote takes the place of its sentinel, and names in it stay
text. Where
the loss is follows from where the sentinels stand.
"""

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mmjax.data.examples import (
    Continuation,
    Image,
    SampleError,
    Segment,
    Special,
    Text,
    Turn,
    joined,
)
from mmjax.data.text.chat_rendering import GENERATION_BEGIN, GENERATION_END, Renderer
from mmjax.data.text.huggingface_tokenizer import HuggingFaceTokenizer
from mmjax.data.text.tokenizer_json import SPACE
from mmjax.errors import InputError

Span = tuple[int, int]

ANSWER = Turn("assistant", (Text("answer"),))
"""Some answer, for renderings that need one."""


@dataclass(frozen=True)
class ChatFormat:
    """What is known of a chat template.

    Attributes:
        labels: whether it is to be known what carries loss; else nothing does, and texts are tokenised across turns, as transformers does.
        in_parts: whether it wants contents as lists of parts, as templates for images do, and not as texts.
        image: the special token that it writes for an image that is given as a part. "": it knows no such parts, and images stand
            within what a turn says.
        header: what stands between a question and the place where the assistant begins to write.
        writes_header: whether the template writes it when it is asked for a prompt; else it does so only before an answer.
        stop: the special token that ends what the assistant says; "" if there is none.
    """

    renderer: Renderer
    tokenizer: HuggingFaceTokenizer
    labels: bool = True
    in_parts: bool = False
    image: str = ""
    header: str = ""
    writes_header: bool = True
    stop: str = ""

    def render(
        self, turns: Sequence[Turn], contents: Sequence[Sequence[str | Image]], *, prompt: bool
    ) -> str:
        """The text of a conversation whose turns say `contents`. Raises InputError where the template refuses it."""
        messages = [
            {"role": turn.role, "content": self._content(said)}
            for turn, said in zip(turns, contents, strict=True)
        ]
        return self.renderer.render(messages, prompt=prompt)

    def _content(self, said: Sequence[str | Image]) -> str | list[dict[str, str]]:
        if not self.in_parts and len(said) == 1 and isinstance(said[0], str):
            return said[0]
        return [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
            for part in said
        ]

    def parts(self, turn: Turn) -> "list[_Content | Image]":
        """What the template is given of a turn: one text with images in it, or texts and images as parts.

        In the latter case the template writes what separates them: a line feed next to an image is left out.
        """
        content = turn.content
        if not self.image or not any(isinstance(part, Image) for part in content):
            return [_Content.of(content)]
        found: list[_Content | Image] = []
        for before, part, after in zip(
            (None, *content), content, (*content[1:], None), strict=False
        ):
            if isinstance(part, Image):
                found.append(part)
                continue
            text = part.text.removeprefix("\n") if isinstance(before, Image) else part.text
            text = text.removesuffix("\n") if isinstance(after, Image) else text
            if text:
                found.append(_Content.of((Text(text),)))
        return found

    @functools.cached_property
    def special_names(self) -> str:
        """A regular expression for the names of special tokens, the longest first, with the white space that some take along."""
        names = sorted(self.tokenizer.special_tokens, key=len, reverse=True)
        swallowed = ((name, *self.tokenizer.swallows.get(name, (False, False))) for name in names)
        return (
            "|".join(
                rf"{r'\s*' if left else ''}{re.escape(name)}{r'\s*' if right else ''}"
                for name, left, right in swallowed
            )
            or "(?!)"
        )

    def unusable(self, reason: str) -> InputError:
        return InputError(f"The chat template of {self.tokenizer.path} {reason}.")


@dataclass(frozen=True)
class _Content:
    """What a turn says, or one part of it, and the white space around it, which templates may take off."""

    before: str
    core: tuple[Text | Image, ...]
    after: str

    @classmethod
    def of(cls, content: Sequence[Text | Image]) -> "_Content":
        core = list(content)
        before = after = ""
        if core and isinstance(core[0], Text):
            text = core[0].text.lstrip()
            before = core[0].text[: len(core[0].text) - len(text)]
            core[0] = Text(text)
        if core and isinstance(core[-1], Text):
            text = core[-1].text.rstrip()
            after = core[-1].text[len(text) :]
            core[-1] = Text(text)
        return cls(before, tuple(core), after)


class Sentinel(NamedTuple):
    """A special token, or the place of something that is said, in a rendering."""

    start: int
    end: int
    special: str | None
    part: int = -1


class _Place(NamedTuple):
    """From the beginning to the end of what a turn says."""

    start: int
    end: int


class Rendering:
    """One conversation as a template writes it, with sentinels for contents.

    Attributes:
        text: the rendering.
        turns: where in it each turn's content stands.
    """

    def __init__(self, chat: ChatFormat, turns: Sequence[Turn], *, prompt: bool):
        """
        Args:
            prompt: whether the assistant speaks next.

        Raises:
            InputError: the template refuses the conversation, or does not write what a turn says, or writes it twice.
        """
        self._chat = chat
        self._ends_open = (
            prompt and not chat.writes_header
        )  # then an answer to come makes the template write what stands before it
        self._prompt = prompt and chat.writes_header
        self._said = [*turns, ANSWER] if self._ends_open else list(turns)
        self._parts = [chat.parts(turn) for turn in self._said]
        self._flat = [part for parts in self._parts for part in parts]
        self._key = self._unused_key()
        self._rendered = self._render(
            [f"{self._key}{number}q" for number in range(len(self._flat))]
        )
        self.text, self._generated = _without_generation_marks(self._rendered)
        self._sentinels = list(self._find_marks())
        self.turns = list(self._places())

    def _render(self, cores: Sequence[str]) -> str:
        """What the template makes of the conversation if `cores` are said, one for each part; those of images do not matter."""
        core = iter(cores)
        said = [[_around(part, next(core)) for part in parts] for parts in self._parts]
        return self._chat.render(self._said, said, prompt=self._prompt)

    def _unused_key(self) -> str:
        """A word that nobody says."""
        said = [
            part.text for content in self._flat for part in _said(content) if isinstance(part, Text)
        ]
        key = "turnmark"
        while any(key in text for text in [*said, self._chat.tokenizer.chat_template or ""]):
            key += "x"
        return key

    def _find_marks(self) -> Iterator[Sentinel]:
        pattern = re.compile(f"{self._key}(?P<number>\\d{{1,9}})q|{self._chat.special_names}")
        images = [number for number, part in enumerate(self._flat) if isinstance(part, Image)]
        written = 0
        for match in pattern.finditer(self.text):
            number, name = (
                match["number"],
                match[0] if match[0] in self._chat.tokenizer.special_tokens else match[0].strip(),
            )
            if number:
                yield Sentinel(match.start(), match.end(), None, int(number))
            elif images and name == self._chat.image:
                yield Sentinel(
                    match.start(), match.end(), None, images[min(written, len(images) - 1)]
                )
                written += 1
            else:
                yield Sentinel(match.start(), match.end(), name)

    def _places(self) -> Iterator[_Place]:
        """Where the content of each turn stands."""
        numbers = itertools.count()
        for turn, parts in zip(self._said, self._parts, strict=True):
            found: list[Sentinel] = []
            for part, number in zip(parts, numbers, strict=False):
                here = [sentinel for sentinel in self._sentinels if sentinel.part == number]
                if len(here) != 1:
                    what = f"writes {len(here)} times" if here else "leaves out or changes"
                    shown = "shows" if isinstance(part, Image) else "says"
                    raise self._chat.unusable(
                        f"{what} what the {turn.role} {shown}, so that labels cannot be told from it"
                    )
                found += here
            yield _Place(
                min(sentinel.start for sentinel in found), max(sentinel.end for sentinel in found)
            )

    def end_of(self, turn: int) -> Sentinel | None:
        """The special token that ends a turn: the next one, if it comes before what anybody else says."""
        following = (
            sentinel for sentinel in self._sentinels if sentinel.start >= self.turns[turn].end
        )
        sentinel = next(following, None)
        return sentinel if sentinel is not None and sentinel.special is not None else None

    def check_contents(self) -> None:
        """Renders what is really said. Raises SampleError if the template looks into texts, or changes them, and writes something else."""
        words = [
            [f"{self._key}p" if isinstance(part, Image) else part.text for part in _said(content)]
            for content in self._flat
        ]
        said = ["".join(parts) for parts in words]
        rendered = self._render(said)
        expected = re.sub(
            f"{self._key}(\\d{{1,9}})q", lambda match: said[int(match[1])], self._rendered
        )
        if rendered != expected:
            raise SampleError(
                "rewritten by the chat template", next((text for text in said if text), "")[:80]
            )

    def continuation(self) -> Continuation:
        """The segments."""
        end = len(self.text)
        if self._ends_open:
            end = self._answer_starts(len(self._said) - 1)
        spans = self._spans(end) if self._chat.labels else []
        segments = list(_with_prefix_spaces(self._cut(spans, end), self._chat.tokenizer))
        begin = Special(self._chat.tokenizer.begins)
        if self._chat.image and begin.name and segments[:1] != [begin]:
            segments.insert(0, begin)  # as processors of transformers do, and tokenizers do not
        return joined(segments)

    def _spans(self, end: int) -> list[Span]:
        """Where the loss is."""
        answers = [
            number
            for number, turn in enumerate(self._said)
            if turn.role == "assistant" and self.turns[number].start < end
        ]
        if self._generated:
            starts = {self.turns[number].start: self._answer_starts(number) for number in answers}
            return [
                (self._drawn_left(start, stop, starts), stop) for start, stop in self._generated
            ]
        spans = []
        for number in answers:
            sentinel = self.end_of(number)
            if sentinel is None or sentinel.special != self._chat.stop:
                raise self._chat.unusable(
                    f"does not end everything that the assistant says with {self._chat.stop}"
                )
            spans.append((self._answer_starts(number), sentinel.end))
        return spans

    def _drawn_left(self, start: int, stop: int, starts: dict[int, int]) -> int:
        """The beginning of a marked span, or that of the white space before it which is no part of the generation prompt: it belongs to
        the first token of the answer."""
        for content, begin in starts.items():
            if begin < start <= content < stop and not self.text[begin:start].strip():
                return begin
        return start

    def _answer_starts(self, number: int) -> int:
        """The end of the generation prompt before an answer. Where the template writes something else there: the answer itself."""
        place = self.turns[number].start
        before = self.turns[number - 1].end if number else 0
        between, header = self.text[before:place], self._chat.header
        found = between.find(header)
        return before + found + len(header) if found >= 0 and not between[:found].strip() else place

    def _cut(self, spans: list[Span], end: int) -> Iterator[Segment]:
        def has_loss(place: int) -> bool:
            return any(start <= place < stop for start, stop in spans)

        place = 0
        borders = sorted({border for span in spans for border in span})
        for sentinel in [*self._sentinels, Sentinel(end, end, "")]:
            if sentinel.start >= end:
                sentinel = Sentinel(end, end, "")
            inner = [border for border in borders if place < border < sentinel.start]
            for start, stop in zip([place, *inner], [*inner, sentinel.start], strict=True):
                if start < stop:
                    yield Text(self.text[start:stop], has_loss(start))
            if sentinel.start == end:
                return
            if sentinel.special is not None:
                yield Special(sentinel.special, has_loss(sentinel.start))
            else:
                yield from _spoken(self._flat[sentinel.part], has_loss(sentinel.start))
            place = sentinel.end


def _said(content: _Content | Image) -> tuple[Text | Image, ...]:
    return (content,) if isinstance(content, Image) else content.core


def _around(content: _Content | Image, core: str) -> str | Image:
    return content if isinstance(content, Image) else content.before + core + content.after


def _spoken(content: _Content | Image, loss: bool) -> Iterator[Segment]:
    for part in _said(content):
        if isinstance(part, Image):
            yield part
        elif part.text:
            yield Text(part.text, loss)


def _without_generation_marks(text: str) -> tuple[str, list[Span]]:
    """The text, and where in it the marked parts stand."""
    pieces, spans, length, begins = [], [], 0, []
    for piece in re.split(f"({re.escape(GENERATION_BEGIN)}|{re.escape(GENERATION_END)})", text):
        if piece == GENERATION_BEGIN:
            begins.append(length)
        elif piece == GENERATION_END and begins:
            spans.append((begins.pop(), length))
        else:
            pieces.append(piece)
            length += len(piece)
    return "".join(pieces), [span for span in spans if span[0] < span[1]]


def _with_prefix_spaces(
    segments: Iterator[Segment], tokenizer: HuggingFaceTokenizer
) -> Iterator[Segment]:
    """Writes out the spaces that the tokenizer puts before a text, or before each text that follows a special token."""
    begins = tokenizer.prefix_space != "never"
    for segment in segments:
        if isinstance(segment, Text):
            if begins and (
                tokenizer.prefix_space == "again" or not segment.text.startswith((" ", SPACE))
            ):
                segment = Text(" " + segment.text, segment.loss)
            begins = False
        else:
            begins = tokenizer.prefix_space in ("always", "again")
        yield segment
