"""Markup that is safe by construction, and the pieces of a page that several sections use.

Every text is escaped unless it is markup that these functions made.
"""

import html
import re
from collections.abc import Iterable, Sequence

_VOID = frozenset({"br", "circle", "hr", "img", "line", "meta", "path", "polyline", "rect"})
# Control characters and lone surrogates: no HTML document may hold them.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class Html(str):
    """Markup. Plain `str` is text, and is escaped when it becomes part of markup."""

    __slots__ = ()


type Child = str | Html | Iterable["Child"] | None


def escape(text: str) -> Html:
    """Text as markup. Characters that no HTML document may hold become U+FFFD."""
    return Html(html.escape(_FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text), quote=True))


def join(children: Iterable[Child], separator: str = "") -> Html:
    """Children one after the other; plain text among them is escaped."""
    parts = []
    for child in children:
        if isinstance(child, str):
            parts.append(child if isinstance(child, Html) else escape(child))
        else:
            parts.append(Html() if child is None else join(child))
    return Html(escape(separator).join(parts))


def tag(name: str, *children: Child, **attributes: str | float | None) -> Html:
    """An element.

    Args:
        name: of the element.
        children: markup, text, None (nothing) or iterables of these.
        attributes: `class_` stands for class, `stroke_width` for stroke-width; None: no such attribute.
    """
    written = ""
    for key, value in attributes.items():
        if isinstance(value, float):
            value = f"{value:.2f}".rstrip("0").rstrip(".")
        if value is not None:
            written += f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
    if name in _VOID and not children:
        end = ">" if name in ("br", "hr", "img", "meta") else "/>"
        return Html(f"<{name}{written}{end}")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


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
