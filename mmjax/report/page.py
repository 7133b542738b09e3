"""A page as a file of its own: what all pages of mmjax have around them."""

import string
from importlib import resources

from mmjax.report.charts import chart_style
from mmjax.report.html import Child, Html, escape, join


def document(title: str, body: Html, footer: Child) -> str:
    """A whole HTML document, which loads nothing: styles are in it."""
    files = resources.files(__package__)
    style = files.joinpath("style.css").read_text(encoding="utf-8")
    frame = string.Template(files.joinpath("page.html").read_text(encoding="utf-8"))
    return frame.substitute(
        title=escape(title),
        style=join((chart_style(), Html(style)), "\n"),
        body=body,
        footer=join((footer,)),
    )
