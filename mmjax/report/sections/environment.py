"""With what the run was made: versions, hardware, seed, and the whole config."""

import json
from collections.abc import Iterator
from typing import Any

from mmjax.base.format import readable
from mmjax.report.html import Child, Html, definitions, fold, missing, section, tag
from mmjax.report.reading import Run


def render(run: Run) -> Html:
    """The section."""
    summary = run.summary
    seed = [("seed", summary["seed"])] if "seed" in summary else []
    digest = (
        [("config digest", f"{summary['config_digest'][:16]}…")]
        if "config_digest" in summary
        else []
    )
    pairs = [*seed, *digest, *_flat(summary.get("hardware")), *_flat(summary.get("versions"))]
    notes = run.config.get("notes") or {}
    return section(
        "Made with",
        definitions((readable(name), tag("code", str(value))) for name, value in pairs)
        if pairs
        else missing(
            run.problems.get("summary.json", "The summary names no versions and no hardware.")
        ),
        _notes(notes),
        fold("The whole config", tag("pre", json.dumps(run.config, indent=2, ensure_ascii=False)))
        if run.config
        else missing(run.problems.get("config.json", "The config is empty.")),
    )


def _notes(notes: dict[str, Any]) -> Child:
    if not notes:
        return None
    lead = tag(
        "p",
        "What of the recipe is taken from a paper, what is inferred, and what is substituted.",
        class_="note",
    )
    return [
        tag("h3", "Sources of the recipe"),
        lead,
        definitions((readable(name), str(text)) for name, text in notes.items()),
    ]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name} {key}".strip())
    elif value is not None:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else value
