"""Pieces of the page that several sections use."""

from collections.abc import Iterable, Sequence

from mmjax.report.html import Child, Html, tag


def section(title: str, *children: Child, lead: str | None = None) -> Html:
    """A section with its heading and, if given, one paragraph that says how to read it."""
    return tag("section", tag("h2", title), tag("p", lead, class_="lead") if lead else None, *children)


def missing(sentence: str) -> Html:
    """What stands in the place of something that the run does not have."""
    return tag("p", sentence, class_="missing")


def table(head: Sequence[Child], rows: Iterable[Sequence[Child]], style: str) -> Html:
    """A table. The first cell of a row names it. Wider than the window, it scrolls within itself."""
    header = tag("thead", tag("tr", [tag("th", cell, scope="col") for cell in head]))
    body = [tag("tr", tag("th", row[0], scope="row"), [tag("td", cell) for cell in row[1:]]) for row in rows]
    return tag("div", tag("table", header, tag("tbody", body), class_=style), class_="scroll")


def fold(summary: str, *children: Child) -> Html:
    """Something that the reader opens."""
    return tag("details", tag("summary", summary), *children)


def definitions(pairs: Iterable[tuple[str, Child]]) -> Html:
    """Names with their values."""
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs])


def legend(entries: Iterable[tuple[str, str]]) -> Html:
    """(CSS class, text) of each colour that a figure uses."""
    return tag("p", [tag("span", tag("i", class_=f"key {style}"), text) for style, text in entries], class_="legend")
