"""What the run was made with: versions, hardware, seed, and the whole config."""

import json
from collections.abc import Iterator
from typing import Any

from mmjax.base.format import readable
from mmjax.report.html import Child, Html, definitions, fold, missing, section, tag
from mmjax.report.reading import Run

ORDER = 110


def render(run: Run) -> Html:
    """The section."""
    summary = run.summary
    pairs: list[tuple[str, Any]] = []
    if "seed" in summary:
        pairs.append(("seed", summary["seed"]))
    if "config_digest" in summary:
        pairs.append(("config digest", f"{summary['config_digest'][:16]}…"))
    for accepted in summary.get("accepted_changes") or ():
        where = f"{accepted.get('stage')}, step {accepted.get('step')}"
        pairs += [(f"had changed at {where}", change) for change in accepted.get("changes", ())]
    pairs += [*_flat(summary.get("hardware")), *_flat(summary.get("versions"))]
    unknown = run.problems.get("summary.json", "The summary names no versions and no hardware.")
    notes = run.config.get("notes") or {}
    sources: Child = None
    if notes:
        lead = (
            "What of the recipe is taken from a paper, what is inferred, and what is substituted."
        )
        sources = [
            tag("h3", "Sources of the recipe"),
            tag("p", lead, class_="note"),
            definitions((readable(name), str(text)) for name, text in notes.items()),
        ]
    config = missing(run.problems.get("config.json", "The config is empty."))
    if run.config:
        text = json.dumps(run.config, indent=2, ensure_ascii=False)
        config = fold("The whole config", tag("pre", text))
    return section(
        "Made with",
        definitions((readable(name), tag("code", str(value))) for name, value in pairs)
        if pairs
        else missing(unknown),
        sources,
        config,
    )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name} {key}".strip())
    elif value is not None:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else value
