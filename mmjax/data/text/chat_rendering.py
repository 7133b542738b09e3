"""Chat templates in the language of jinja, as published models carry them: rendered in a sandbox, with what transformers gives them.

Of a conversation, a template sees texts and roles. It cannot reach Python's objects. Bounded is what it writes, how often its loops and
macros run, and how long the texts are that +, *, ~ and padding make. Not bounded is the work of one expression, such as filters over a
long range, and `replace` and `join`, which can make a text as long as the product of two.
"""

import contextlib
import datetime
import functools
import json
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from mmjax.errors import InputError

MAX_CHARACTERS = 4 * 1024 * 1024

BUDGET = 16 * 1024 * 1024
"""What a rendering may do: it costs one for each character, also of what is kept in a variable, and `_ITERATION` for each iteration of a
loop and each call of a macro: that makes a hundred thousand iterations, a second of work."""
_ITERATION = 160
_INDENT = 64
_SHOWN = 500  # characters of what a template says of itself

_PADDING = frozenset({"center", "expandtabs", "format_map", "ljust", "rjust", "zfill"})
_WIDTH = re.compile(r"\d+")
_GIVEN_WIDTH = re.compile(r"\*|\{[^{}]*\{")

GENERATION_BEGIN, GENERATION_END = "\x00[", "\x00]"
"""Stand in a rendering around what a template says to be written by the assistant, in {% generation %} ... {% endgeneration %}."""

DATE = datetime.datetime(2024, 7, 26)
"""Today, for templates that write the date. It is fixed, so that a text has the same tokens every day; Llama 3 falls back on this one."""

Message = Mapping[str, Any]


class TooLong(jinja2.TemplateError):
    """A template writes more than it may."""


class _Generation(jinja2.ext.Extension):
    """The tag {% generation %}."""

    tags = {"generation"}  # noqa: RUF012 - as jinja declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("enclosed"), [], [], body).set_lineno(line)

    @staticmethod
    def enclosed(caller: Any) -> str:
        return GENERATION_BEGIN + caller() + GENERATION_END


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Bounds what a template can do and make, as one of a line can ask for gigabytes."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any):
        super().__init__(**options, finalize=_written)
        self._spent = threading.local()
        for name in ("batch", "center", "indent", "slice", "wordwrap"):
            self.filters[name] = _bounded(name, self.filters[name])
        self.filters["format"] = lambda text, *values, **named: (
            _checked_format(str(text)) % (named or values)
        )
        del self.filters["xmlattr"], self.globals["lipsum"]

    def begin(self) -> None:
        """A rendering begins, in this thread."""
        self._spent.cost = 0

    def spend(self, cost: int) -> bool:
        """Counts a part of the work; true. Raises TooLong if it was too much."""
        self._spent.cost += cost
        if self._spent.cost > BUDGET:
            raise TooLong("it does not come to an end")
        return True

    def concatenated(self, *values: Any) -> str:
        """What ~ makes."""
        texts = list(map(str, values))
        if sum(map(len, texts)) > MAX_CHARACTERS:
            raise TooLong("a text is too long")
        return "".join(texts)

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        """Loops and macros count their iterations; ~ is bounded."""

        def call_of(method: str, arguments: list[jinja2.nodes.Expr]) -> jinja2.nodes.Call:
            attribute = jinja2.nodes.EnvironmentAttribute(method)
            return jinja2.nodes.Call(attribute, arguments, [], None, None)

        tree = super()._parse(source, name, filename)
        for node in tree.find_all((jinja2.nodes.For, jinja2.nodes.Macro, jinja2.nodes.CallBlock)):
            assert isinstance(node, jinja2.nodes.For | jinja2.nodes.Macro | jinja2.nodes.CallBlock)
            texts = (part.find_all(jinja2.nodes.TemplateData) for part in node.body)
            cost = _ITERATION + sum(len(data.data) for found in texts for data in found)
            count = call_of("spend", [jinja2.nodes.Const(cost)])
            node.body.insert(0, jinja2.nodes.ExprStmt(count))
            if isinstance(node, jinja2.nodes.For) and node.test is not None:
                node.test = jinja2.nodes.And(count, node.test)
        for concat in list(tree.find_all(jinja2.nodes.Concat)):
            concat.nodes = [call_of("concatenated", concat.nodes)]
        tree.set_environment(self)
        return tree

    def getattr(self, obj: Any, attribute: str) -> Any:
        _check_method(obj, attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        _check_method(obj, argument)
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (
            operator == "*" and _length(left) * _length(right) > MAX_CHARACTERS
        ):
            raise TooLong(f"{operator} of large values is not allowed")
        if operator == "%" and isinstance(left, str):
            _checked_format(left)
        if operator == "+" and isinstance(left, str | list | tuple) and len(left) > MAX_CHARACTERS:
            raise TooLong("a text is too long")
        return super().call_binop(context, operator, left, right)


def _length(value: Any) -> int:
    """How often a factor repeats the other, or how long the other is."""
    if isinstance(value, str | list | tuple):
        return len(value)
    return abs(value) if isinstance(value, int) else 1


@jinja2.pass_context
def _written(context: jinja2.runtime.Context, value: Any) -> str:
    """What {{ }} writes, counted."""
    text = str(value)
    context.environment.spend(len(text))  # type: ignore[attr-defined]
    return text


def _bounded(name: str, function: Any) -> Any:
    """A filter that is given a width, or so, times which its result can be as long as what it is given."""

    def run(value: Any, *arguments: Any, **named: Any) -> Any:
        smaller, larger = sorted(
            max(1, _length(one)) for one in (1, value, *arguments, *named.values())
        )[-2:]
        if smaller * larger > MAX_CHARACTERS:
            raise TooLong(f"{name} of large values is not allowed")
        return function(value, *arguments, **named)

    return functools.update_wrapper(run, function)  # with the attributes by which jinja knows it


def _check_method(value: Any, name: Any) -> None:
    if isinstance(value, str) and name in _PADDING:
        raise TooLong(f"{name} of a text is not allowed")
    if isinstance(value, str) and name == "format":
        _checked_format(value)


def _checked_format(text: str) -> str:
    """A format whose widths stand in it and are small."""
    if (
        _GIVEN_WIDTH.search(text)
        or sum(int(width[:9]) for width in _WIDTH.findall(text)) > MAX_CHARACTERS
    ):
        raise TooLong("format with large widths is not allowed")
    return text


class Renderer:
    """A chat template, compiled."""

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str],
        *,
        where: str,
        today: datetime.datetime = DATE,
    ):
        """
        Args:
            variables: what the template sees beside the conversation, such as bos_token.
            where: the file it comes from, for messages.
            today: the date that `strftime_now` gives.

        Raises:
            InputError: it is no jinja template.
        """

        def raise_exception(message: str) -> NoReturn:
            raise jinja2.TemplateError(message)

        self._where = where
        self._variables = dict(variables)
        self._environment = environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = today.strftime
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise InputError(
                f"The chat template of {where} is no valid jinja template: {error}."
            ) from None

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The text of a conversation.

        Args:
            messages: {"role": ..., "content": ...} each.
            prompt: whether to add what stands before the assistant's next answer.

        Raises:
            InputError: the template refuses the conversation, fails, or writes too much.
        """
        variables = self._variables | {
            "messages": list(messages),
            "add_generation_prompt": prompt,
            "tools": None,
            "documents": None,
        }
        self._environment.begin()
        parts, length = [], 0
        try:
            with contextlib.closing(self._template.generate(variables)) as blocks:  # type: ignore[type-var]
                for part in blocks:
                    parts.append(part)
                    length += len(part)
                    if length > MAX_CHARACTERS:
                        raise TooLong(f"it writes more than {MAX_CHARACTERS} characters")
        except Exception as error:  # a template can fail in as many ways as a program
            roles = ", ".join(str(message["role"]) for message in messages)
            raise InputError(
                f"The chat template of {self._where} cannot write a conversation of {roles[:_SHOWN]}: {str(error)[:_SHOWN]}"
            ) from None
        return "".join(parts)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: jinja's own filter escapes what has a meaning in HTML."""
    if indent is not None and _length(indent) > _INDENT:
        raise TooLong(f"an indent of more than {_INDENT} is not allowed")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
