"""How far each layer of a decoder is from its prediction, where that was measured."""

from mmjax.report.charts import figure
from mmjax.report.html import Html, missing, section, tag
from mmjax.report.reading import Run

ORDER = 80

_TITLE, _FILE = "Prediction trajectory", "trajectory.json"


def render(run: Run) -> Html:
    """The section; nothing where the workdir has no trajectory, which is no part of a run."""
    if not (run.path / _FILE).exists():
        return Html()
    if not run.trajectory:
        return section(_TITLE, missing(run.problems.get(_FILE, f"{_FILE} is empty.")))
    try:
        chart, model, cut = (
            figure(run.trajectory),
            str(run.trajectory["model"]["weights"]),
            run.trajectory["cut"],
        )
        found = (
            f"The curve bends before layer {cut['layer']}."
            if cut
            else "The curve bends down nowhere."
        )
    except (
        AttributeError,
        IndexError,
        KeyError,
        OverflowError,
        TypeError,
        ValueError,
        ZeroDivisionError,
    ):
        return section(_TITLE, missing(f"{_FILE} is damaged, or no file of mmjax."))
    return section(
        _TITLE,
        chart,
        tag("p", found, " All of it: trajectory.html, beside this page.", class_="note"),
        lead=f"How far each layer's prediction is from that of the last layer, measured on {model}.",
    )
