"""The files of a workdir, each of which may be missing: all that the report knows. Of what is missing or damaged, a sentence is kept.

| file | what is read |
|---|---|
| config.json | the resolved recipe |
| summary.json | seed, config_digest, stages, eval, versions, hardware: see `mmjax.runs.workdir` |
| metrics.jsonl | lines with "stage", "step" and "loss" (training) or "holdout/loss" (held-out) |
| predictions.jsonl | lines with task, id, image, question, type, reference, prediction |
| evaluations.jsonl | lines with stage, step (0: what the stage begins with), partial, evaluation and eval: what was scored beside the end |
| manifests/STAGE.json | entries with target, source, how, shape, dtype, note |
| previews/STAGE.png, .txt | the first packed row of a stage |
| attention.npz | see `mmjax.evaluation.attention_maps` |
| trajectory.json | what `python -m mmjax.trajectory` wrote; it is no part of a run and need not be there |
"""

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.base.format import plural
from mmjax.errors import InputError
from mmjax.ledger.costs import Costs

type Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The files of a workdir.

    Attributes:
        path: of the workdir.
        config, summary: of the JSON files; empty if there is none.
        metrics, predictions, evaluations: the lines of the files, in order.
        manifests, previews: by stage; a preview is (PNG bytes or None, text or None).
        attention: arrays of attention.npz by name.
        against: what another run cost that this one is compared with.
        trajectory: of trajectory.json; empty if there is none.
        problems: by file name, why it is not shown: that it is missing, or how it is damaged.
    """

    path: Path
    config: Record = field(default_factory=dict)
    summary: Record = field(default_factory=dict)
    metrics: list[Record] = field(default_factory=list)
    predictions: list[Record] = field(default_factory=list)
    evaluations: list[Record] = field(default_factory=list)
    manifests: dict[str, Record] = field(default_factory=dict)
    previews: dict[str, tuple[bytes | None, str | None]] = field(default_factory=dict)
    attention: dict[str, np.ndarray] = field(default_factory=dict)
    against: Costs | None = None
    trajectory: Record = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.resolve().name

    @property
    def stages(self) -> list[str]:
        """Names of the stages in order: of the config, or of the summary where there is no config."""
        configured = self.config.get("stages") or {}
        return list(configured) or [stage["name"] for stage in self.summary.get("stages", [])]

    @property
    def unscored(self) -> str:
        """Why the summary has no scores, in words."""
        if any(record.get("partial") for record in self.evaluations):
            return "This run was scored on some of the images only, which is no score of the run; see the other scores."
        return "This run was not evaluated: its summary has no scores."

    def ledger(self, stage: str) -> Record:
        """What summary.json says of a stage; empty if nothing."""
        return next(
            (entry for entry in self.summary.get("stages", []) if entry.get("name") == stage), {}
        )

    def setting(self, *path: str) -> Any:
        """A value of the config, such as setting("stages", "pretrain", "steps"), or None."""
        value: Any = self.config
        for key in path:
            if not isinstance(value, dict) or key not in value:
                return None
            value = value[key]
        return value


def read(workdir: Path, against: Costs | None = None) -> Run:
    """Reads a workdir. Raises InputError if it is none: a folder with a config.json or a summary.json."""
    if not (workdir / "config.json").is_file() and not (workdir / "summary.json").is_file():
        raise InputError(
            f"{workdir} is not the workdir of a run: it has neither config.json nor summary.json."
        )
    problems: dict[str, str] = {}
    previews: dict[str, tuple[bytes | None, str | None]] = {}
    for path in sorted((workdir / "previews").glob("*"), key=lambda path: path.stem):
        drawing, text = previews.get(path.stem, (None, None))
        if path.suffix == ".png":
            previews[path.stem] = path.read_bytes(), text
        elif path.suffix == ".txt":
            previews[path.stem] = drawing, path.read_text(encoding="utf-8", errors="replace")
    return Run(
        path=workdir,
        config=_json(workdir / "config.json", problems),
        summary=_json(workdir / "summary.json", problems),
        metrics=list(_lines(workdir / "metrics.jsonl", problems)),
        predictions=list(_lines(workdir / "predictions.jsonl", problems)),
        evaluations=list(_lines(workdir / "evaluations.jsonl", problems)),
        manifests={
            path.stem: _json(path, problems)
            for path in sorted((workdir / "manifests").glob("*.json"))
        },
        previews=previews,
        attention=_arrays(workdir / "attention.npz", problems),
        against=against,
        trajectory=_json(workdir / "trajectory.json", problems),
        problems=problems,
    )


def _json(path: Path, problems: dict[str, str]) -> Record:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems[path.name] = f"There is no {path.name}."
        return {}
    except (OSError, ValueError) as error:
        problems[path.name] = f"{path.name} cannot be read: {error}."
        return {}
    if not isinstance(content, dict):
        problems[path.name] = f"{path.name} does not hold an object."
        return {}
    return content


def _lines(path: Path, problems: dict[str, str]) -> Iterator[Record]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        problems[path.name] = f"There is no {path.name}."
        return
    except OSError as error:
        problems[path.name] = f"{path.name} cannot be read: {error}."
        return
    damaged = 0
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            record = None  # a run that was killed may leave half a line
        if isinstance(record, dict):
            yield record
        else:
            damaged += 1
    if damaged:
        problems[path.name] = (
            f"Skipped in {path.name}: {plural(damaged, 'line')} that cannot be read."
        )


def _arrays(path: Path, problems: dict[str, str]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        problems[path.name] = f"There is no {path.name}."
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        problems[path.name] = f"{path.name} cannot be read: {error}."
    return {}
