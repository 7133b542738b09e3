"""Conversations as a chat template writes them, cut into segments, and where in them the loss is.

A conversation is rendered with a sentinel in the place of what each turn says, and then cut at the sentinels. What the template writes
stands between them, and names of special tokens in it are special tokens; what people wrote takes the place of its sentinel, and names in
it stay text. Where the loss is follows from where the sentinels stand.
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
        messages = []
        for turn, said in zip(turns, contents, strict=True):
            content: str | list[dict[str, str]]
            if not self.in_parts and len(said) == 1 and isinstance(said[0], str):
                content = said[0]
            else:
                content = [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                    for part in said
                ]
            messages.append({"role": turn.role, "content": content})
        return self.renderer.render(messages, prompt=prompt)

    def parts(self, turn: Turn) -> "list[_Content]":
        """What the template is given of a turn: one text with images in it, or texts and images as parts.

        In the latter case the template writes what separates them: a line feed next to an image is dropped.
        """
        content = turn.content
        if not self.image or not any(isinstance(part, Image) for part in content):
            return [_Content.of(content)]
        found: list[_Content] = []
        for before, part, after in zip(
            (None, *content), content, (*content[1:], None), strict=False
        ):
            if isinstance(part, Image):
                found.append(_Content("", (part,), "", image=part))
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
    """What a turn says, or one part of it, and the white space around it, which templates may take off.

    Attributes:
        image: the image that it is, where the template is given one as a part; None: a text, which may have images in it.
    """

    before: str
    core: tuple[Text | Image, ...]
    after: str
    image: Image | None = None

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


class Span(NamedTuple):
    """A part of a rendering."""

    start: int
    end: int


class Sentinel(NamedTuple):
    """A special token, or the place of something that is said, in a rendering."""

    start: int
    end: int
    special: str | None
    part: int = -1


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
        # Then an answer to come makes the template write what stands before it.
        self._ends_open = prompt and not chat.writes_header
        self._prompt = prompt and chat.writes_header
        self._said = [*turns, ANSWER] if self._ends_open else list(turns)
        self._parts = [chat.parts(turn) for turn in self._said]
        self._flat = [part for parts in self._parts for part in parts]
        texts = [chat.tokenizer.chat_template or ""]
        texts += [
            part.text for content in self._flat for part in content.core if isinstance(part, Text)
        ]
        self._key = "sentinel"  # a word that nobody says
        while any(self._key in text for text in texts):
            self._key += "x"
        numbers = range(len(self._flat))
        self._rendered = self._render([f"{self._key}{number}q" for number in numbers])
        # Taken out of the rendering: the delimiters around what the template says to be generated.
        kept: list[str] = []
        self._generated: list[Span] = []
        length, begins = 0, []
        delimiters = f"({re.escape(GENERATION_BEGIN)}|{re.escape(GENERATION_END)})"
        for text in re.split(delimiters, self._rendered):
            if text == GENERATION_BEGIN:
                begins.append(length)
            elif text == GENERATION_END and begins:
                begin = begins.pop()
                self._generated += [Span(begin, length)] if begin < length else []
            else:
                kept.append(text)
                length += len(text)
        self.text = "".join(kept)
        self._sentinels = list(self._find_sentinels())
        self.turns = list(self._places())

    def _render(self, cores: Sequence[str]) -> str:
        """What the template makes of the conversation if `cores` are said, one for each part; those of images do not matter."""
        core = iter(cores)
        said: list[list[str | Image]] = []
        for parts in self._parts:
            texts = [(part, f"{part.before}{next(core)}{part.after}") for part in parts]
            said.append([text if part.image is None else part.image for part, text in texts])
        return self._chat.render(self._said, said, prompt=self._prompt)

    def _find_sentinels(self) -> Iterator[Sentinel]:
        pattern = re.compile(f"{self._key}(?P<number>\\d{{1,9}})q|{self._chat.special_names}")
        images = [number for number, part in enumerate(self._flat) if part.image is not None]
        specials = self._chat.tokenizer.special_tokens
        written = 0
        for match in pattern.finditer(self.text):
            start, end = match.span()
            name = match[0] if match[0] in specials else match[0].strip()
            if match["number"]:
                yield Sentinel(start, end, None, int(match["number"]))
            elif images and name == self._chat.image:
                yield Sentinel(start, end, None, images[min(written, len(images) - 1)])
                written += 1
            else:
                yield Sentinel(start, end, name)

    def _places(self) -> Iterator[Span]:
        """Where the content of each turn stands."""
        numbers = itertools.count()
        for turn, parts in zip(self._said, self._parts, strict=True):
            found: list[Sentinel] = []
            for part, number in zip(parts, numbers, strict=False):
                here = [sentinel for sentinel in self._sentinels if sentinel.part == number]
                if len(here) != 1:
                    what = f"writes {len(here)} times" if here else "omits or changes"
                    shown = "says" if part.image is None else "shows"
                    raise self._chat.unusable(
                        f"{what} what the {turn.role} {shown}, so that labels cannot be told from it"
                    )
                found += here
            yield Span(min(one.start for one in found), max(one.end for one in found))

    def end_of(self, turn: int) -> Sentinel | None:
        """The special token that ends a turn: the next one, if it comes before what anybody else says."""
        following = (
            sentinel for sentinel in self._sentinels if sentinel.start >= self.turns[turn].end
        )
        sentinel = next(following, None)
        return sentinel if sentinel is not None and sentinel.special is not None else None

    def check_contents(self) -> None:
        """Renders what is really said. Raises SampleError if the template looks into texts, or changes them, and writes something else."""
        image = f"{self._key}p"
        said = [
            "".join(image if isinstance(part, Image) else part.text for part in content.core)
            for content in self._flat
        ]
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
        silent = [self._around(number) for number, turn in enumerate(self._said) if not turn.loss]
        tokenizer = self._chat.tokenizer
        segments: list[Segment] = []
        # Written out: the spaces that the tokenizer puts before a text, or before each text that follows a special token.
        again, begins = tokenizer.prefix_space == "again", tokenizer.prefix_space != "never"
        for segment in self._cut(spans, silent, end):
            if isinstance(segment, Text):
                if begins and (again or not segment.text.startswith((" ", SPACE))):
                    segment = Text(" " + segment.text, segment.loss)
                begins = False
            else:
                begins = tokenizer.prefix_space in ("always", "again")
            segments.append(segment)
        begin = Special(tokenizer.begins)
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
        spans = []
        for start, stop in self._generated:
            # White space before it that is no part of the generation prompt belongs to the first token of the answer.
            for number in answers:
                begin, content = self._answer_starts(number), self.turns[number].start
                if begin < start <= content < stop and not self.text[begin:start].strip():
                    start = begin
                    break
            spans.append(Span(start, stop))
        if self._generated:
            return spans
        for number in answers:
            sentinel = self.end_of(number)
            if sentinel is None or sentinel.special != self._chat.stop:
                raise self._chat.unusable(
                    f"does not end everything that the assistant says with {self._chat.stop}"
                )
            spans.append(Span(self._answer_starts(number), sentinel.end))
        return spans

    def _answer_starts(self, number: int) -> int:
        """The end of the generation prompt before an answer. Where the template writes something else there: the answer itself."""
        place = self.turns[number].start
        before = self.turns[number - 1].end if number else 0
        between, header = self.text[before:place], self._chat.header
        found = between.find(header)
        return before + found + len(header) if found >= 0 and not between[:found].strip() else place

    def _around(self, number: int) -> Span:
        """All that is written because of a turn: from the end of the turn before to what is said next."""
        begin = 0
        if number:
            before = self.end_of(number - 1)
            begin = self.turns[number - 1].end if before is None else before.end
        last = number + 1 == len(self.turns)
        return Span(begin, len(self.text) if last else self.turns[number + 1].start)

    def _cut(self, spans: list[Span], silent: list[Span], end: int) -> Iterator[Segment]:
        """The segments up to `end`; those within spans carry loss, unless they are silent."""

        def has_loss(place: int) -> bool:
            return any(span.start <= place < span.end for span in spans) and not any(
                span.start <= place < span.end for span in silent
            )

        place = 0
        borders = sorted({border for span in (*spans, *silent) for border in span})
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
                for part in self._flat[sentinel.part].core:
                    if isinstance(part, Image):
                        yield part
                    elif part.text:
                        yield Text(part.text, has_loss(sentinel.start))
            place = sentinel.end
