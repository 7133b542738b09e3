"""The top of the page: what was trained, how well it answers beside the baselines, and what that took."""

from mmjax.base.format import count, duration, operations, plural, readable, score
from mmjax.report.html import Child, Html, missing, tag
from mmjax.report.reading import Run

ORDER = 10
FEW = 30  # with so many right or wrong answers, chance alone moves a share by 9 points


def render(run: Run) -> Html:
    """The headline."""
    title = " · ".join(
        part for part in (run.config.get("name") or run.name, run.config.get("variant")) if part
    )
    return tag(
        "header",
        tag("p", "mmjax · report of a run", class_="eyebrow"),
        tag("h1", title),
        tag("p", _sentence(run), class_="subtitle"),
        tag("div", _scores(run), _cost(run), class_="figures"),
    )


def _sentence(run: Run) -> str:
    """What was trained, in words."""
    stages = [(name, run.ledger(name)) for name in run.stages]
    tokens = [
        entry["visual_tokens_per_image"]
        for _, entry in stages
        if "visual_tokens_per_image" in entry
    ]
    names = " then ".join(run.stages) or "no stage"
    text = f"{plural(len(stages), 'stage')}: {names}."
    if tokens:
        grown = (
            f"from {tokens[0]:,} to {tokens[-1]:,}" if tokens[0] != tokens[-1] else f"{tokens[0]:,}"
        )
        text += f" Visual tokens per image: {grown}."
    if unfinished := [name for name, entry in stages if not entry]:
        text += f" Not in the summary, so not finished: {', '.join(unfinished)}."
    if run.summary.get("accepted_changes"):
        text += " What it read changed under way, and that was accepted (see “Made with”)."
    return text


def _scores(run: Run) -> Child:
    results = run.summary.get("eval") or {}
    if not results:
        return missing(run.unscored)
    figures = []
    for task, result in results.items():
        metric = result.get("metric")
        beside = ", ".join(
            f"{readable(name)} {score(value, metric)}"
            for name, value in result["baselines"].items()
        )
        asked = plural(result["n"], "question" if metric is None else "held-out image")
        note = f"{readable(task)}, {asked}; {beside or 'no baseline was scored'}"
        if result["n"] < FEW:
            note += f"; of fewer than {FEW}, a score says little"
        shown = score(result["score"], metric)
        figures.append(_figure(shown, metric or "right answers", note, "score"))
    return figures


def _cost(run: Run) -> Child:
    entries = [entry for name in run.stages if (entry := run.ledger(name))]
    if not entries:
        return missing(run.problems.get("summary.json", "The summary has no stages."))
    samples, seconds, flops = (
        sum(entry.get(key) or 0 for entry in entries) for key in ("samples", "seconds", "flops")
    )
    return [
        _figure(
            duration(seconds),
            "in all stages",
            "steps, compilation, loading, held-out loss and saving",
        ),
        _figure(count(samples), "samples", "rows that were trained on, repeats included"),
        _figure(operations(flops), "of arithmetic", "matrix products, forward and backward"),
    ]


def _figure(value: str, unit: str, note: str, style: str = "") -> Html:
    return tag(
        "div",
        tag("b", value),
        tag("span", unit),
        tag("small", note),
        class_=f"figure {style}".strip(),
    )
