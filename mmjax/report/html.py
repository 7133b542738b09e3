"""Markup that is safe by construction: every text is escaped unless it is markup that these functions made.

Pieces of the page that several sections use.
"""

import html
from collections.abc import Iterable, Sequence

_VOID = frozenset({"br", "circle", "hr", "img", "line", "meta", "path", "polyline", "rect"})


class Html(str):
    """Markup. Plain `str` is text, and is escaped when it becomes part of markup."""

    __slots__ = ()


type Child = str | Html | Iterable["Child"] | None


def escape(text: str) -> Html:
    """Text as markup. Characters that no HTML document may hold (control characters, lone surrogates) become U+FFFD."""
    allowed = "".join(
        character if _is_allowed(character) else "\N{REPLACEMENT CHARACTER}" for character in text
    )
    return Html(html.escape(allowed, quote=True))


def join(children: Iterable[Child], separator: str = "") -> Html:
    """Children one after the other; plain text among them is escaped."""
    return Html(escape(separator).join(_markup(child) for child in children))


def tag(name: str, *children: Child, **attributes: str | float | None) -> Html:
    """An element.

    Args:
        name: of the element.
        children: markup, text, None (nothing) or iterables of these.
        attributes: `class_` stands for class, `stroke_width` for stroke-width; None leaves the attribute out.
    """
    written = "".join(
        f' {_name(key)}="{escape(_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return (
            Html(f"<{name}{written}>")
            if name in ("br", "hr", "img", "meta")
            else Html(f"<{name}{written}/>")
        )
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def _markup(child: Child) -> Html:
    if child is None:
        return Html()
    if isinstance(child, Html):
        return child
    if isinstance(child, str):
        return escape(child)
    return join(child)


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _value(value: str | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _is_allowed(character: str) -> bool:
    code = ord(character)
    return character in "\t\n\r" or (
        code >= 0x20 and not 0x7F <= code <= 0x9F and not 0xD800 <= code <= 0xDFFF
    )


def section(title: str, *children: Child, lead: str | None = None) -> Html:
    """A section with its heading and, if given, one paragraph that says how to read it."""
    return tag(
        "section", tag("h2", title), tag("p", lead, class_="lead") if lead else None, *children
    )


def missing(sentence: str) -> Html:
    """What stands in the place of something that the run does not have."""
    return tag("p", sentence, class_="missing")


def table(head: Sequence[Child], rows: Iterable[Sequence[Child]], style: str) -> Html:
    """A table. The first cell of a row names it. Wider than the window, it scrolls within itself."""
    header = tag("thead", tag("tr", [tag("th", cell, scope="col") for cell in head]))
    body = [
        tag("tr", tag("th", row[0], scope="row"), [tag("td", cell) for cell in row[1:]])
        for row in rows
    ]
    return tag("div", tag("table", header, tag("tbody", body), class_=style), class_="scroll")


def fold(summary: str, *children: Child) -> Html:
    """Something that the reader opens."""
    return tag("details", tag("summary", summary), *children)


def definitions(pairs: Iterable[tuple[str, Child]]) -> Html:
    """Names with their values."""
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs])


def legend(entries: Iterable[tuple[str, str]]) -> Html:
    """(CSS class, text) of each colour that a figure uses."""
    return tag(
        "p",
        [tag("span", tag("i", class_=f"key {style}"), text) for style, text in entries],
        class_="legend",
    )
