"""What the model answers: 24 questions of the test split as they come, and some of its mistakes; and 24 captions beside the true ones."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from mmjax.base.format import plural, readable
from mmjax.report.html import Child, Html, missing, section, tag
from mmjax.report.images import thumbnail
from mmjax.report.reading import Record, Run

_SHOWN, _MISTAKES = 24, 12


def render(run: Run) -> Html:
    """The section."""
    records = run.predictions
    if not records:
        return section(
            "Answers",
            missing(
                run.problems.get("predictions.jsonl", "predictions.jsonl holds no prediction.")
            ),
        )
    measured = {
        task for task, result in (run.summary.get("eval") or {}).items() if result.get("metric")
    }
    free = [record for record in records if record.get("task") in measured]
    graded = [record for record in records if record.get("task") not in measured]
    problem = run.problems.get("predictions.jsonl")
    rest = (_free(free) if free else None, tag("p", problem, class_="missing") if problem else None)
    if not graded:
        return section("Answers", *rest)
    wrong = [record for record in graded if not is_right(record)]
    chosen = choose(graded, _SHOWN)
    mistakes = choose([record for record in wrong if record not in chosen], _MISTAKES)
    return section(
        "Answers",
        _cards(chosen),
        _mistakes(wrong, mistakes, len(graded)),
        *rest,
        lead=f"{plural(len(chosen), 'test image')}, evenly spaced through {plural(len(graded), 'prediction')} and not selected by "
        "whether they are right; the kinds of question take turns.",
    )


def _free(records: Sequence[Record]) -> Child:
    """Answers in the model's own words, which are neither right nor wrong."""
    chosen = choose(records, _SHOWN)
    lead = f"{plural(len(chosen), 'held-out image')}, evenly spaced through {plural(len(records), 'caption')}."
    cards = tag("div", [_card(record, graded=False) for record in chosen], class_="cards")
    return [tag("h3", "Captions"), tag("p", lead, class_="lead"), cards]


def is_right(record: Record) -> bool:
    """Whether a prediction equals the truth."""
    return record.get("prediction") == record.get("truth")


def choose(records: Sequence[Record], number: int) -> list[Record]:
    """Up to `number` records of different images, evenly spaced, the types taking turns as far as there are enough of each."""
    kinds = sorted({str(record.get("type")) for record in records})
    chosen: list[Record] = []
    images: set[str] = set()
    for index in range(number):
        start = index * len(records) // number
        rotated = [*records[start:], *records[:start]]
        fresh = [record for record in rotated if str(record.get("image")) not in images]
        wanted = [
            record for record in fresh if str(record.get("type")) == kinds[index % len(kinds)]
        ] or fresh
        if not wanted:
            break
        chosen.append(wanted[0])
        images.add(str(wanted[0].get("image")))
    return chosen


def _mistakes(wrong: Sequence[Record], shown: Sequence[Record], of: int) -> Child:
    if not wrong:
        return tag("p", f"None of the {plural(of, 'prediction')} is wrong.", class_="lead")
    text = (
        f"{plural(len(wrong), 'prediction')} of {of:,} {'is' if len(wrong) == 1 else 'are'} wrong."
    )
    if not shown:
        return tag("p", text, class_="lead")
    return [
        tag("h3", "More mistakes"),
        tag("p", f"{text} These are {len(shown)} of them.", class_="lead"),
        _cards(shown),
    ]


def _cards(records: Iterable[Record]) -> Html:
    return tag("div", [_card(record) for record in records], class_="cards")


def _card(record: Record, *, graded: bool = True) -> Html:
    right = is_right(record)
    truth = str(record.get("truth"))
    prediction = str(record.get("prediction")) or "(nothing)"
    answer: Child = [tag("b", prediction), tag("i", "✓", class_="sign", title="right")]
    if not graded:
        answer = [tag("b", prediction), tag("span", f"truth: {truth}", class_="truth")]
    elif not right:
        answer = [
            tag("b", prediction),
            tag("i", "✗", class_="sign", title="wrong"),
            tag("span", f"truth: {truth}", class_="truth"),
        ]
    return tag(
        "figure",
        _image(record),
        tag(
            "figcaption",
            tag("span", str(record.get("question")), class_="question"),
            tag("span", answer, class_="answer"),
        ),
        class_="card" if right or not graded else "card wrong",
        title=f"{readable(str(record.get('type')))}{' question' if graded else ''}; truth: {truth}",
    )


def _image(record: Record) -> Html:
    path = record.get("image")
    shown = (
        thumbnail(Path(path), str(record.get("id", ""))) if isinstance(path, str) and path else None
    )
    return shown or tag("div", "the image is not on this computer", class_="gone")
