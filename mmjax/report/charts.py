"""Charts as inline SVG, each drawn twice, for wide and for narrow windows, so that its text keeps its size; the style sheet shows one.

`line_chart` draws any lines; `figure` the prediction trajectory that trajectory.json holds: a line per sample, their median, the fit, and
where it is cut.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from mmjax.base.format import count
from mmjax.report.html import Html, legend, tag

_WIDE, _NARROW = (960, 300), (360, 250)
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 10, 26, 40
_MARGIN = 16  # around an image on its own
_FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_MOST_POINTS = 600  # more would not be seen, only weigh


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        style: the CSS class that colours it: "train", "heldout", "sample", "median" or "fit".
        points: in order of x, all finite.
        draw_points: draw the points too.
    """

    name: str
    style: str
    points: tuple[tuple[float, float], ...]
    draw_points: bool = False


@dataclass(frozen=True)
class ChartSpan:
    """A part of the x axis with a label at its top, such as a stage."""

    start: float
    stop: float
    label: str


@dataclass(frozen=True)
class Axes:
    """What a chart shows: labels, the spans of x in order, whether y is logarithmic, and by how many pixels it is taller than most."""

    x_label: str
    y_label: str
    spans: tuple[ChartSpan, ...]
    logarithmic: bool
    taller: int = 0


def line_chart(series: Sequence[Series], axes: Axes) -> Html:
    """A chart of lines over the spans. Every series has a point, and there is a span."""
    drawings = (
        _draw(series, axes, size, kind) for size, kind in ((_WIDE, "wide"), (_NARROW, "narrow"))
    )
    return tag("div", *drawings, class_="chart")


def image(series: Sequence[Series], axes: Axes) -> str:
    """The same chart as a file on its own, an SVG with its styles in it."""
    inner = {"x": _MARGIN, "y": _MARGIN, "width": _WIDE[0], "height": _WIDE[1] + axes.taller}
    width, height = inner["width"] + 2 * _MARGIN, inner["height"] + 2 * _MARGIN
    return tag(
        "svg",
        tag("style", chart_style()),
        tag("rect", width=width, height=height, fill="var(--paper)"),
        tag("g", _draw(series, axes, _WIDE, "alone", **inner), class_="chart"),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        font_family=_FONT,
    )


def chart_style() -> Html:
    """The styles that charts need."""
    return Html(resources.files(__package__).joinpath("chart.css").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class _Frame:
    """From data to pixels."""

    width: int
    height: int
    x: tuple[float, float]
    y: tuple[float, float]
    logarithmic: bool

    def across(self, value: float) -> float:
        low, high = self.x
        return _LEFT + (value - low) / (high - low) * (self.width - _LEFT - _RIGHT)

    def up(self, value: float) -> float:
        low, high, value = (math.log(v) if self.logarithmic else v for v in (*self.y, value))
        return self.bottom - (value - low) / (high - low) * (self.bottom - _TOP)

    @property
    def bottom(self) -> float:
        return self.height - _BOTTOM


def _draw(
    series: Sequence[Series], axes: Axes, size: tuple[int, int], kind: str, **place: float
) -> Html:
    width, height = size[0], size[1] + axes.taller
    values = [y for line in series for _, y in line.points]
    if axes.logarithmic:
        y_ticks, y_range = logarithmic_ticks(min(values), max(values))
    else:
        y_ticks, y_range = linear_ticks(0.0, max(values), 5)
    x_range = low, high = axes.spans[0].start, axes.spans[-1].stop
    frame = _Frame(width, height, x_range, y_range, axes.logarithmic)
    right = width - _RIGHT
    rows = []
    for value in y_ticks:
        y = frame.up(value)
        line = tag("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="grid")
        look = {"class_": "tick", "text_anchor": "end"}
        rows.append(tag("g", line, tag("text", f"{value:g}", x=_LEFT - 8, y=y + 4, **look)))
    columns = []
    for value in linear_ticks(low, high, 8 if width == _WIDE[0] else 4)[0]:
        if low <= value <= high and value == round(value):  # steps and layers are whole
            x = frame.across(value)
            # The last label stays inside.
            look = {"class_": "tick", "text_anchor": "end" if x > right - 20 else "middle"}
            columns.append(tag("text", count(value), x=x, y=frame.bottom + 16, **look))
    return tag(
        "svg",
        [_span(span, index, frame) for index, span in enumerate(axes.spans)],
        rows,
        columns,
        tag("text", axes.x_label, x=right, y=height - 4, class_="axis", text_anchor="end"),
        tag("text", axes.y_label, x=2, y=height - 4, class_="axis"),
        [_line(line, frame) for line in series],
        viewBox=f"0 0 {width} {height}",
        class_=kind,
        role="img",
        aria_label=f"{axes.y_label} over {axes.x_label}",
        **place,
    )


def _span(span: ChartSpan, index: int, frame: _Frame) -> Html:
    left, right = frame.across(span.start), frame.across(span.stop)
    room = int((right - left) / 6.4)  # characters of the label that fit
    label = span.label if len(span.label) <= room else span.label.split(" · ")[0]
    # A number must not lose digits unseen.
    label = label if len(label) <= room else f"{label[: max(0, room - 1)]}…"
    return tag(
        "g",
        tag(
            "rect",
            x=left,
            y=_TOP,
            width=right - left,
            height=frame.bottom - _TOP,
            class_=f"band{index % 2}",
        ),
        tag("line", x1=left, x2=left, y1=8, y2=frame.bottom, class_="boundary") if index else None,
        tag("text", label, x=left + (6 if index else 0), y=17, class_="span"),
    )


def _line(line: Series, frame: _Frame) -> Html:
    points = line.points
    if len(points) > _MOST_POINTS:  # the first and the last are among those that are drawn
        step = (len(points) - 1) / (_MOST_POINTS - 1)
        points = tuple(points[round(index * step)] for index in range(_MOST_POINTS))
    places = [(frame.across(x), frame.up(y)) for x, y in points]
    single = len(places) == 1
    circles = [
        tag("circle", tag("title", f"{line.name}: {y:.4g} at {count(x)}"), cx=across, cy=up, r=3)
        for (x, y), (across, up) in zip(points, places, strict=True)
        if line.draw_points or single
    ]
    written = " ".join(f"{across:.1f},{up:.1f}" for across, up in places)
    polyline = None if single else tag("polyline", points=written)
    return tag("g", polyline, circles, class_=f"line {line.style}")


def linear_ticks(low: float, high: float, number: int) -> tuple[list[float], tuple[float, float]]:
    """About `number` round values over [low, high], and the range that they and the data need."""
    if high - low <= 1e-9 * max(1.0, abs(low), abs(high)):
        high = low + 1.0  # one value, or values that no axis could tell apart
    raw = (high - low) / number
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)], (
        first * step,
        last * step,
    )


def logarithmic_ticks(low: float, high: float) -> tuple[list[float], tuple[float, float]]:
    """Ticks of the form 1, 2, 5 x 10^k (only 10^k over many decades) around positive data, and the range that they and the data need."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    mantissas = (1, 2, 5) if len(decades) <= 4 else (1,)
    candidates = [mantissa * 10.0**decade for decade in decades for mantissa in mantissas]
    below = max((tick for tick in candidates if tick <= low * 1.0001), default=low)
    above = min((tick for tick in candidates if tick >= high * 0.9999), default=high)
    if below == above:
        below, above = below / 2, above * 2
    return [tick for tick in candidates if below <= tick <= above], (below, above)


MOST_LINES = 200
"""Samples that are drawn at most; the median is that of all."""
_WITHOUT = "no knee was found"
_TALLER = 80  # many lines lie close together


def figure(record: dict[str, Any]) -> Html:
    """The chart with its legend. Raises KeyError, TypeError or ValueError if the record is not what the analysis wrote."""
    samples = len(record["samples"])
    drawn = f"one of {samples:,} samples"
    if samples > MOST_LINES:
        drawn = f"one sample; {MOST_LINES} of {samples:,} are drawn"
    keys = [("sample", drawn), ("median", "median of all samples")]
    keys += [("fit", "two lines that meet, fitted to the median")] if record["cut"] else []
    return tag("div", line_chart(*_trajectory(record)), legend(keys))


def drawing(record: dict[str, Any]) -> str:
    """The chart as an SVG file."""
    return image(*_trajectory(record))


def _trajectory(record: dict[str, Any]) -> tuple[list[Series], Axes]:
    """Lines and axes. A span says what becomes of its layers at the cut, and is half a layer wider than these to both sides."""

    def points(curve: list[float]) -> tuple[tuple[float, float], ...]:
        return tuple((float(layer), max(0.0, float(value))) for layer, value in enumerate(curve))

    def named(first: int, stop: int) -> str:
        return f"{first}" if stop - first == 1 else f"{first}–{stop - 1}"

    samples, layers, cut = record["samples"], len(record["median"]), record["cut"]
    drawn = min(len(samples), MOST_LINES)
    series = [
        Series(f"sample {number}", "sample", points(samples[number * len(samples) // drawn]))
        for number in range(drawn)
    ]
    series.append(Series("median", "median", points(record["median"])))
    spans = [ChartSpan(-0.5, layers - 0.5, _WITHOUT)]
    if cut:
        fit = tuple((float(x), float(y)) for x, y in cut["fit"])
        series.append(Series("fit", "fit", fit, draw_points=True))
        first, stop = cut["replaced_layers"]
        spans = [
            ChartSpan(-0.5, first - 0.5, f"{named(0, first)} · early, kept"),
            ChartSpan(first - 0.5, stop - 0.5, f"{named(first, stop)} · late, replaced by one"),
            ChartSpan(stop - 0.5, layers - 0.5, named(stop, layers)),
        ]
    y_label = "nats from the last layer's prediction"
    return series, Axes("layer", y_label, tuple(spans), False, taller=_TALLER)
