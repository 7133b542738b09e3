"""One HTML page about a run, from the files of its workdir. It loads nothing: images, charts and styles are all in it."""

import os
from pathlib import Path

from mmjax.base.registry import modules_of
from mmjax.ledger.reading import read as costs_of
from mmjax.report import reading
from mmjax.report.html import join, tag
from mmjax.report.page import document

__all__ = ["render", "write"]


def render(workdir: Path | str, against: Path | str | None = None) -> str:
    """The page: what each file of `sections/` makes of the run, by its ORDER. Of what is missing in the workdir, it says so.

    Args:
        against: the workdir of a finished run, beside which the ledger shows what this one saves.

    Raises:
        InputError: the folder is no workdir, or `against` is none of a finished run.
    """
    run = reading.read(Path(workdir), costs_of(Path(against)) if against else None)
    again = tag("code", f"python -m mmjax.report {workdir}")
    footer = (
        "Written by mmjax from the files of ",
        tag("code", str(workdir)),
        "; ",
        again,
        " writes it again.",
    )
    sections = sorted(modules_of("mmjax.report.sections"), key=lambda section: section.ORDER)
    body = join((section.render(run) for section in sections), "\n")
    return document(f"{run.name} · mmjax", body, footer)


def write(workdir: Path | str, against: Path | str | None = None) -> Path:
    """Writes report.html into the workdir, in one step, and returns its path. Raises InputError as `render`."""
    path = Path(workdir) / "report.html"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(render(workdir, against), encoding="utf-8")
    temporary.replace(path)
    return path
