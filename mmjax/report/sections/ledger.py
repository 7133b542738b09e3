"""What each stage cost: tokens, samples, seconds by cause, arithmetic."""

import collections
from collections.abc import Callable

from mmjax.base.format import count, duration, operations, percent, plural, readable
from mmjax.errors import InputError
from mmjax.report import savings
from mmjax.report.html import Child, Html, legend, missing, section, table, tag
from mmjax.report.reading import Record, Run

ORDER = 20

_CAUSES = 8  # colours of the style sheet
_NOT_RECORDED = "–"


def render(run: Run) -> Html:
    """The section."""
    stages = [(name, entry) for name in run.stages if (entry := run.ledger(name))]
    if not stages:
        text = run.problems.get("summary.json", "The summary has no stages.")
        return section("Ledger", missing(text))
    rows = _rows(run, stages)
    try:
        shares = savings.shares_of_last_model(run)
        shown = (tag("b", percent(shares[name], 0)) for name, _ in stages)
        rows.append(["cost beside the last stage's model", *shown])
        text = (
            "The arithmetic of a step over that of the same step, with the same rows and text, on the model of the last stage, which reads "
            f"{savings.last_model(run)}."
        )
        note = tag("p", text, class_="note")
    except InputError as error:
        note = missing(f"The cost beside the last stage's model cannot be computed: {error}")
    unfinished = [name for name in run.stages if not run.ledger(name)]
    return section(
        "Ledger",
        tag(
            "div",
            table(["", *(name for name, _ in stages)], rows, "ledger"),
            tag("div", _seconds(stages), tag("h3", "Cost beside the last stage's model"), note),
            class_="columns",
        ),
        savings.render(run),
        _skipped(stages),
        missing(f"Not in the summary: {', '.join(unfinished)}.") if unfinished else None,
    )


def _rows(run: Run, stages: list[tuple[str, Record]]) -> list[list[Child]]:
    """What of each stage is known, in a column of its own."""

    def number(
        key: str, show: Callable[[float], str] = count
    ) -> Callable[[str, Record], str | None]:
        return lambda _, entry: None if entry.get(key) is None else show(entry[key])

    def side(name: str, _: Record) -> str | None:
        pixels = run.setting("stages", name, "model", "vision", "image_size")
        return f"{pixels} px" if pixels else None

    def blocks(name: str, _: Record) -> str | None:
        """How much of the language model a stage has, where one has a surrogate of it."""
        decoder = run.setting("stages", name, "model", "decoder") or {}
        replaced, layers = decoder.get("replaced_layers") or [], decoder.get("layers")
        if layers is None:
            return None
        gone = sum(end - first - decoder.get("translators", 1) for first, end in replaced)
        return f"{layers - gone} of {layers}" if replaced else f"all {layers}"

    def per_sample(_: str, entry: Record) -> str | None:
        flops, samples = entry.get("flops"), entry.get("samples")
        return operations(flops / samples) if flops and samples else None

    path = ("model", "decoder", "replaced_layers")
    surrogate = any(run.setting("stages", name, *path) for name, _ in stages)
    # One device spends the time itself; summaries of older versions do not say how many there were.
    many = any((entry.get("devices") or 1) != 1 for _, entry in stages)
    shown: dict[str, Callable[[str, Record], str | None]] = {
        **({"blocks of the language model": blocks} if surrogate else {}),
        "image": side,
        "visual tokens per image": number("visual_tokens_per_image"),
        "steps": number("steps"),
        "samples (rows)": number("samples"),
        "tokens": number("tokens"),
        "time": number("seconds", duration),
        **({"devices": number("devices")} if many else {}),
        **({"device time": number("device_seconds", duration)} if many else {}),
        "arithmetic": number("flops", operations),
        "arithmetic per sample": per_sample,
    }
    return [
        [title, *(show(name, entry) or _NOT_RECORDED for name, entry in stages)]
        for title, show in shown.items()
    ]


def _skipped(stages: list[tuple[str, Record]]) -> Child:
    """What the stages skipped, and why; nothing where nothing was."""
    found = []
    for name, entry in stages:
        causes = collections.Counter(entry.get("skipped") or {})
        examples = entry.get("skip_examples") or {}
        items = []
        for cause, number in causes.most_common():
            example = f", such as {examples[cause]}" if cause in examples else ""
            items += [tag("li", f"{cause}: {count(number)}{example}")] if number else []
        if items:
            title = tag("b", f"{name}: {plural(sum(causes.values()), 'sample')}")
            found.append(tag("div", title, tag("ul", items), class_="skipped"))
    if not found:
        return None
    text = "They cannot be used for training; a sample is counted each time it is met."
    return [tag("h3", "Skipped samples"), tag("p", text, class_="note"), found]


def _seconds(stages: list[tuple[str, Record]]) -> Child:
    """A bar of the seconds of each stage, divided by cause; all bars have one scale."""
    divided: dict[str, dict[str, float]] = {}
    totals: collections.Counter[str] = collections.Counter()
    for name, entry in stages:
        parts = entry.get("seconds_by_cause") or {}
        divided[name] = {str(cause): float(part) for cause, part in parts.items() if part}
        totals.update(divided[name])
    if not totals:
        return missing("The seconds of this run are not divided by cause.")
    styles = {cause: f"cause{i % _CAUSES}" for i, (cause, _) in enumerate(totals.most_common())}
    longest = max(sum(parts.values()) for parts in divided.values()) or 1.0
    bars = []
    for name, parts in divided.items():
        rects, x = [], 0.0
        for cause, style in styles.items():
            width = 1000 * parts.get(cause, 0.0) / longest
            title = tag("title", f"{readable(cause)}: {duration(parts.get(cause, 0.0))}")
            rects.append(tag("rect", title, x=x, y=0, width=width, height=20, class_=style))
            x += width
        drawing = tag(
            "svg",
            rects,
            viewBox="0 0 1000 20",
            preserveAspectRatio="none",
            role="img",
            aria_label=f"time of {name} by cause",
        )
        total = tag("span", duration(sum(parts.values())), class_="total")
        bars.append(tag("div", tag("span", name, class_="name"), drawing, total, class_="row"))
    return [
        tag("h3", "Where the time went"),
        tag("div", bars, class_="bars"),
        legend(
            (styles[cause], f"{readable(cause)} {duration(seconds)}")
            for cause, seconds in totals.most_common()
        ),
    ]
