"""The first packed row of each stage, as the model reads it."""

from mmjax.report.html import Html, fold, missing, section, tag
from mmjax.report.images import png
from mmjax.report.reading import Run

ORDER = 100


def render(run: Run) -> Html:
    """The section."""
    names = [name for name in run.stages if name in run.previews]
    names += [name for name in run.previews if name not in run.stages]
    if not names:
        return section("What the model reads", missing("There are no previews."))
    folds = []
    for name in names:
        drawing, text = run.previews[name]
        if drawing:
            shown = png(drawing, text or "images and segments of the row")
            folds.append(fold(name, tag("div", shown, class_="scroll preview")))
        else:
            folds.append(fold(name, tag("pre", text)))
    return section(
        "What the model reads",
        folds,
        lead="The first row of each stage, decoded from the arrays that the training step gets. Tokens that carry loss are tinted.",
    )
