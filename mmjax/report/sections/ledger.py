"""What each stage cost: tokens, samples, seconds by cause, arithmetic."""

import collections
from collections.abc import Callable

from mmjax.base.format import count, duration, operations, percent, plural, readable
from mmjax.errors import InputError
from mmjax.report import savings
from mmjax.report import savings as costs
from mmjax.report.html import Child, Html, legend, missing, section, table, tag
from mmjax.report.reading import Record, Run

_CAUSES = 8  # colours of the style sheet
_NOT_RECORDED = "–"

type Row = tuple[str, Callable[[str, Record], str]]


def render(run: Run) -> Html:
    """The section."""
    stages = [(name, entry) for name in run.stages if (entry := run.ledger(name))]
    if not stages:
        return section(
            "Ledger", missing(run.problems.get("summary.json", "The summary has no stages."))
        )
    unfinished = [name for name in run.stages if not run.ledger(name)]
    return section(
        "Ledger",
        tag(
            "div",
            table(
                ["", *(name for name, _ in stages)],
                [*_rows(run, stages), *_shares(run, stages)],
                "ledger",
            ),
            tag(
                "div",
                _seconds(stages),
                tag("h3", "Cost beside the last stage's model"),
                _share_note(run),
            ),
            class_="columns",
        ),
        savings.render(run),
        _skipped(stages),
        missing(f"Not in the summary: {', '.join(unfinished)}.") if unfinished else None,
    )


def _skipped(stages: list[tuple[str, Record]]) -> Child:
    """What the stages left out, and why; nothing where nothing was."""
    found = [(name, entry) for name, entry in stages if any((entry.get("skipped") or {}).values())]
    if not found:
        return None
    return [
        tag("h3", "Skipped samples"),
        tag(
            "p",
            "Left out of training because they cannot be used; a sample is counted each time it is met.",
            class_="note",
        ),
        [
            _causes(name, entry["skipped"], entry.get("skip_examples") or {})
            for name, entry in found
        ],
    ]


def _causes(name: str, causes: dict[str, int], examples: dict[str, str]) -> Html:
    def line(cause: str, number: int) -> Html:
        example = f", such as {examples[cause]}" if cause in examples else ""
        return tag("li", f"{cause}: {count(number)}{example}")

    listed = [
        line(cause, number) for cause, number in collections.Counter(causes).most_common() if number
    ]
    return tag(
        "div",
        tag("b", f"{name}: {plural(sum(causes.values()), 'sample')}"),
        tag("ul", listed),
        class_="skipped",
    )


def _rows(run: Run, stages: list[tuple[str, Record]]) -> list[list[Child]]:
    def per_sample(entry: Record) -> str:
        return (
            operations(entry["flops"] / entry["samples"])
            if entry.get("flops") and entry.get("samples")
            else _NOT_RECORDED
        )

    def side(name: str) -> str:
        pixels = run.setting("stages", name, "model", "vision", "image_size")
        return f"{pixels} px" if pixels else _NOT_RECORDED

    rows: list[Row] = [
        *_surrogate_rows(run, stages),
        ("image", lambda name, entry: side(name)),
        (
            "visual tokens per image",
            lambda name, entry: _number(entry, "visual_tokens_per_image", count),
        ),
        ("steps", lambda name, entry: _number(entry, "steps", count)),
        ("samples (rows)", lambda name, entry: _number(entry, "samples", count)),
        ("tokens", lambda name, entry: _number(entry, "tokens", count)),
        ("time", lambda name, entry: _number(entry, "seconds", duration)),
        *_device_rows(stages),
        ("arithmetic", lambda name, entry: _number(entry, "flops", operations)),
        ("arithmetic per sample", lambda name, entry: per_sample(entry)),
    ]
    return [[title, *(show(name, entry) for name, entry in stages)] for title, show in rows]


def _surrogate_rows(run: Run, stages: list[tuple[str, Record]]) -> list[Row]:
    """How much of the language model each stage has, where one has a surrogate of it."""

    def blocks(name: str) -> str:
        decoder = run.setting("stages", name, "model", "decoder") or {}
        replaced, layers = decoder.get("replaced_layers") or [], decoder.get("layers")
        kept = (
            None
            if layers is None
            else layers
            - sum(end - first - decoder.get("translators", 1) for first, end in replaced)
        )
        return (
            _NOT_RECORDED
            if kept is None
            else f"{kept} of {layers}"
            if replaced
            else f"all {layers}"
        )

    if not any(
        run.setting("stages", name, "model", "decoder", "replaced_layers") for name, _ in stages
    ):
        return []
    return [("blocks of the language model", lambda name, entry: blocks(name))]


def _device_rows(stages: list[tuple[str, Record]]) -> list[Row]:
    """One device spends the time itself; summaries of older versions do not say how many there were."""
    if all((entry.get("devices") or 1) == 1 for _, entry in stages):
        return []
    return [
        ("devices", lambda name, entry: _number(entry, "devices", count)),
        ("device time", lambda name, entry: _number(entry, "device_seconds", duration)),
    ]


def _number(entry: Record, key: str, show: Callable[[float], str]) -> str:
    return _NOT_RECORDED if entry.get(key) is None else show(entry[key])


def _shares(run: Run, stages: list[tuple[str, Record]]) -> list[list[Child]]:
    try:
        shares = costs.shares_of_last_model(run)
    except InputError:
        return []  # `_share_note` says why
    return [
        [
            "cost beside the last stage's model",
            *(tag("b", percent(shares[name], 0)) for name, _ in stages),
        ]
    ]


def _share_note(run: Run) -> Html:
    try:
        yardstick = costs.last_model(run)
    except InputError as error:
        return missing(f"The cost beside the last stage's model cannot be computed: {error}")
    text = "The arithmetic of a step over that of the same step, with the same rows and text, on the model of the last stage, which reads "
    return tag("p", f"{text}{yardstick}.", class_="note")


def _seconds(stages: list[tuple[str, Record]]) -> Child:
    """A bar of the seconds of each stage, divided by cause; all bars have one scale."""
    divided = {name: _by_cause(entry) for name, entry in stages}
    totals: collections.Counter[str] = collections.Counter()
    for parts in divided.values():
        totals.update(parts)
    if not totals:
        return missing("The seconds of this run are not divided by cause.")
    causes = [cause for cause, _ in totals.most_common()]
    styles = {cause: f"cause{index % _CAUSES}" for index, cause in enumerate(causes)}
    longest = max(sum(parts.values()) for parts in divided.values()) or 1.0
    return [
        tag("h3", "Where the time went"),
        tag(
            "div",
            [_bar(name, parts, styles, longest) for name, parts in divided.items()],
            class_="bars",
        ),
        legend(
            (styles[cause], f"{readable(cause)} {duration(seconds)}")
            for cause, seconds in totals.most_common()
        ),
    ]


def _by_cause(entry: Record) -> dict[str, float]:
    parts = entry.get("seconds_by_cause") or {}
    return {str(cause): float(seconds) for cause, seconds in parts.items() if seconds}


def _bar(name: str, parts: dict[str, float], styles: dict[str, str], longest: float) -> Html:
    rects, x = [], 0.0
    for cause in styles:
        width = 1000 * parts.get(cause, 0.0) / longest
        title = tag("title", f"{readable(cause)}: {duration(parts.get(cause, 0.0))}")
        rects.append(tag("rect", title, x=x, y=0, width=width, height=20, class_=styles[cause]))
        x += width
    drawing = tag(
        "svg",
        rects,
        viewBox="0 0 1000 20",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"time of {name} by cause",
    )
    return tag(
        "div",
        tag("span", name, class_="name"),
        drawing,
        tag("span", duration(sum(parts.values())), class_="total"),
        class_="row",
    )
