"""What the model answers: 24 questions of the test split as they come, and some of its mistakes; and 24 captions beside the references."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from mmjax.base.format import plural, readable
from mmjax.report.html import Child, Html, missing, section, tag
from mmjax.report.images import thumbnail
from mmjax.report.reading import Record, Run

ORDER = 60

_SHOWN, _MISTAKES = 24, 12


def render(run: Run) -> Html:
    """The section. Captions are in the model's own words, which are neither right nor wrong."""
    records, problem = run.predictions, run.problems.get("predictions.jsonl")
    if not records:
        return section("Answers", missing(problem or "predictions.jsonl holds no prediction."))
    scores = run.summary.get("eval") or {}
    measured = {task for task, result in scores.items() if result.get("metric")}
    free = [record for record in records if record.get("task") in measured]
    graded = [record for record in records if record.get("task") not in measured]
    rest: list[Child] = []
    if free:
        chosen = choose(free, _SHOWN)
        text = f"{plural(len(chosen), 'held-out image')}, evenly spaced through {plural(len(free), 'caption')}."
        rest = [tag("h3", "Captions"), tag("p", text, class_="lead"), _cards(chosen, graded=False)]
    rest.append(tag("p", problem, class_="missing") if problem else None)
    if not graded:
        return section("Answers", rest)
    wrong = [record for record in graded if not is_right(record)]
    chosen = choose(graded, _SHOWN)
    more = choose([record for record in wrong if record not in chosen], _MISTAKES)
    text = f"None of the {plural(len(graded), 'prediction')} is wrong."
    if wrong:
        verb = "is" if len(wrong) == 1 else "are"
        text = f"{plural(len(wrong), 'prediction')} of {len(graded):,} {verb} wrong."
    mistakes: list[Child] = [tag("p", text, class_="lead")]
    if more:
        lead = tag("p", f"{text} These are {len(more)} of them.", class_="lead")
        mistakes = [tag("h3", "More mistakes"), lead, _cards(more)]
    return section(
        "Answers",
        _cards(chosen),
        mistakes,
        rest,
        lead=f"{plural(len(chosen), 'test image')}, evenly spaced through {plural(len(graded), 'prediction')} and not selected by "
        "whether they are right; the kinds of question alternate.",
    )


def is_right(record: Record) -> bool:
    """Whether a prediction equals the reference."""
    return record.get("prediction") == record.get("reference")


def choose(records: Sequence[Record], number: int) -> list[Record]:
    """Up to `number` records of different images, evenly spaced, the types alternating as far as there are enough of each."""
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


def _cards(records: Iterable[Record], *, graded: bool = True) -> Html:
    cards = []
    for record in records:
        right, path = is_right(record), record.get("image")
        image = None
        if isinstance(path, str) and path:
            image = thumbnail(Path(path), str(record.get("id", "")))
        reference = f"reference: {record.get('reference')}"
        answer: list[Child] = [tag("b", str(record.get("prediction")) or "(nothing)")]
        if graded:
            sign, title = ("✓", "right") if right else ("✗", "wrong")
            answer.append(tag("i", sign, class_="sign", title=title))
        if not graded or not right:
            answer.append(tag("span", reference, class_="reference"))
        question = tag("span", str(record.get("question")), class_="question")
        kind = f"{readable(str(record.get('type')))}{' question' if graded else ''}"
        cards.append(
            tag(
                "figure",
                image or tag("div", "the image is not on this computer", class_="gone"),
                tag("figcaption", question, tag("span", answer, class_="answer")),
                class_="card" if right or not graded else "card wrong",
                title=f"{kind}; {reference}",
            )
        )
    return tag("div", cards, class_="cards")
