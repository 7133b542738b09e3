"""The first packed row of each stage, as the model reads it."""

from mmjax.report.html import Child, Html, fold, missing, section, tag
from mmjax.report.images import png
from mmjax.report.reading import Run


def render(run: Run) -> Html:
    """The section."""
    names = [name for name in run.stages if name in run.previews] + [
        name for name in run.previews if name not in run.stages
    ]
    if not names:
        return section("What the model reads", missing("There are no previews."))
    return section(
        "What the model reads",
        [fold(name, *_preview(*run.previews[name])) for name in names],
        lead="The first row of each stage, decoded from the arrays that the training step gets. Tokens that carry loss are marked.",
    )


def _preview(drawing: bytes | None, text: str | None) -> list[Child]:
    if drawing:
        return [
            tag(
                "div",
                png(drawing, text or "images and segments of the row"),
                class_="scroll preview",
            )
        ]
    return [tag("pre", text)]
