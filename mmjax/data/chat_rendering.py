"""Chat templates in the language of jinja, as published models carry them: rendered in a sandbox, with what transformers gives them.

Of a conversation, a template sees texts and roles. It can neither reach Python's objects nor write more than `MAX_CHARACTERS`.
"""

import contextlib
import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from mmjax.errors import InputError

MAX_CHARACTERS = 4 * 1024 * 1024

GENERATION_BEGIN, GENERATION_END = "\x00[", "\x00]"
"""Stand in a rendering around what a template marks as written by the assistant, in {% generation %} ... {% endgeneration %}."""

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
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    @staticmethod
    def _mark(caller: Any) -> str:
        return GENERATION_BEGIN + caller() + GENERATION_END


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Bounds what an expression can make, as a template of one line can ask for gigabytes."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "*" and _length(left) * _length(right) > MAX_CHARACTERS):
            raise TooLong(f"{operator} of large values is not allowed")
        if operator == "+" and isinstance(left, str | list | tuple) and len(left) > MAX_CHARACTERS:
            raise TooLong("a text is too long")
        return super().call_binop(context, operator, left, right)


def _length(value: Any) -> int:
    """How often a factor repeats the other, or how long the other is."""
    return len(value) if isinstance(value, str | list | tuple) else abs(value) if isinstance(value, int) else 1


class Renderer:
    """A chat template, compiled."""

    def __init__(self, source: str, variables: Mapping[str, str], *, where: str, today: datetime.datetime = DATE):
        """
        Args:
            variables: what the template sees beside the conversation, such as bos_token.
            where: the file it comes from, for messages.
            today: the date that `strftime_now` gives.

        Raises:
            InputError: it is no jinja template.
        """
        self._where = where
        self._variables = dict(variables)
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = today.strftime
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise InputError(f"The chat template of {where} is no valid jinja template: {error}.") from None

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The text of a conversation.

        Args:
            messages: {"role": ..., "content": ...} each.
            prompt: whether to add what stands before the assistant's next answer.

        Raises:
            InputError: the template refuses the conversation, fails, or writes too much.
        """
        variables = self._variables | {"messages": list(messages), "add_generation_prompt": prompt, "tools": None, "documents": None}
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
            raise InputError(f"The chat template of {self._where} cannot write a conversation of {roles}: {error}") from None
        return "".join(parts)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    """Plain JSON: jinja's own filter escapes what has a meaning in HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
