"""Where the parameters of each stage came from."""

import collections
from typing import Any

from mmjax.base.format import count, percent, plural, readable
from mmjax.errors import InputError
from mmjax.report.html import Child, Html, fold, missing, section, table, tag
from mmjax.report.reading import Run
from mmjax.transitions.manifest import Entry, Manifest

ORDER = 90

_ENTRY_HEAD = ("parameter", "origin", "from", "shape", "")


def render(run: Run) -> Html:
    """The section."""
    order = [name for name in run.stages if name in run.manifests]
    order += [name for name in run.manifests if name not in run.stages]
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
    groups: dict[tuple[str, str], list[Entry]] = collections.defaultdict(list)
    for entry in manifest.entries:
        groups[entry.target.split("/")[0], entry.how].append(entry)
    total = sum(entry.size for entry in manifest.entries) or 1
    summary: list[list[Child]] = []
    for (part, how), entries in groups.items():
        size = sum(entry.size for entry in entries)
        share = tag("span", f" {percent(size / total)}", class_="faint")
        origin = tag("span", how, class_=f"how {how}")
        summary.append([part, origin, count(len(entries)), [count(size), share]])
    arrays: list[list[Child]] = []
    for entry in manifest.entries:
        shape = " x ".join(map(str, entry.shape)) or "scalar"
        origin = tag("span", entry.how, class_=f"how {entry.how}")
        source = tag("code", entry.source or "")
        arrays.append([tag("code", entry.target), origin, source, shape, entry.note])
    dropped = None
    if manifest.dropped:
        text = f"Dropped from the stage before: {', '.join(manifest.dropped_parts())}."
        dropped = tag("p", text, class_="note")
    return tag(
        "div",
        tag("h3", f"{name}: {names}" if names else name),
        table(["part", "origin", "arrays", "parameters"], summary, "manifest"),
        dropped,
        fold(f"all {plural(len(arrays), 'array')}", table(_ENTRY_HEAD, arrays, "entries")),
    )
