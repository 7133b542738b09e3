"""Where the parameters of each stage came from."""

import collections
from typing import Any

from mmjax.base.format import count, percent, plural, readable
from mmjax.errors import InputError
from mmjax.report.html import Child, Html, fold, missing, section, table, tag
from mmjax.report.reading import Run
from mmjax.transitions.manifest import Entry, Manifest

_ENTRY_HEAD = ("parameter", "origin", "from", "shape", "")


def render(run: Run) -> Html:
    """The section."""
    order = [name for name in run.stages if name in run.manifests] + [
        name for name in run.manifests if name not in run.stages
    ]
    if not order:
        return section("Parameters", missing("There are no manifests."))
    return section(
        "Parameters",
        [_stage(name, run.manifests[name], run.problems.get(f"{name}.json")) for name in order],
        lead="Every parameter of a stage, by where it came from.",
    )


def _stage(name: str, content: dict[str, Any], problem: str | None) -> Html:
    try:
        manifest = Manifest.from_json(content)
    except InputError as error:
        return tag("div", tag("h3", name), missing(problem or str(error)))
    except (KeyError, TypeError):
        return tag("div", tag("h3", name), missing(f"The manifest of {name} is damaged."))
    names = ", ".join(readable(transition) for transition in manifest.transitions)
    title = f"{name}: {names}" if names else name
    return tag(
        "div",
        tag("h3", title),
        table(["part", "origin", "arrays", "parameters"], _summary(manifest), "manifest"),
        tag(
            "p",
            f"Left behind from the stage before: {', '.join(manifest.left_behind())}.",
            class_="note",
        )
        if manifest.dropped
        else None,
        fold(
            f"all {plural(len(manifest.entries), 'array')}",
            table(_ENTRY_HEAD, map(_entry, manifest.entries), "entries"),
        ),
    )


def _summary(manifest: Manifest) -> list[list[Child]]:
    groups: dict[tuple[str, str], list[Entry]] = collections.defaultdict(list)
    for entry in manifest.entries:
        groups[entry.target.split("/")[0], entry.how].append(entry)
    total = sum(entry.size for entry in manifest.entries) or 1
    return [
        [
            part,
            tag("span", how, class_=f"how {how}"),
            count(len(entries)),
            _size(sum(entry.size for entry in entries), total),
        ]
        for (part, how), entries in groups.items()
    ]


def _size(size: int, total: int) -> Child:
    return [count(size), tag("span", f" {percent(size / total)}", class_="faint")]


def _entry(entry: Entry) -> list[Child]:
    shape = " x ".join(map(str, entry.shape)) or "scalar"
    origin = tag("span", entry.how, class_=f"how {entry.how}")
    return [tag("code", entry.target), origin, tag("code", entry.source or ""), shape, entry.note]
