"""The chart of a prediction trajectory, from what trajectory.json holds: a line per sample, their median, the fit, and where it is cut."""

from collections.abc import Iterator
from typing import Any

from mmjax.report.charts import Axes, Series, Span, line_chart, picture
from mmjax.report.html import Html, tag
from mmjax.report.parts import legend

MOST_LINES = 200
"""Samples that are drawn at most; the median is that of all."""
_WITHOUT = "no corner was found"
_TALLER = 80  # many lines lie close together


def figure(record: dict[str, Any]) -> Html:
    """The chart with its legend. Raises KeyError, TypeError or ValueError if the record is not what the analysis wrote."""
    keys = [("sample", _samples_key(record)), ("median", "median of all samples")]
    keys += [("fit", "two lines that meet, fitted to the median")] if record["cut"] else []
    return tag("div", line_chart(*_chart(record)), legend(keys))


def drawing(record: dict[str, Any]) -> str:
    """The chart as an SVG file."""
    return picture(*_chart(record))


def _samples_key(record: dict[str, Any]) -> str:
    samples, drawn = len(record["samples"]), len(_drawn(record))
    return f"one sample; {drawn} of {samples:,} are drawn" if drawn < samples else f"one of {samples:,} samples"


def _chart(record: dict[str, Any]) -> tuple[list[Series], Axes]:
    axes = Axes("layer", "nats from the last layer's prediction", tuple(_spans(record)), False, taller=_TALLER)
    return list(_series(record)), axes


def _series(record: dict[str, Any]) -> Iterator[Series]:
    for number, curve in enumerate(_drawn(record)):
        yield Series(f"sample {number}", "sample", _points(curve))
    yield Series("median", "median", _points(record["median"]))
    if record["cut"]:
        yield Series("fit", "fit", tuple((float(x), float(y)) for x, y in record["cut"]["fit"]), marks=True)


def _drawn(record: dict[str, Any]) -> list[list[float]]:
    curves: list[list[float]] = record["samples"]
    count = min(len(curves), MOST_LINES)
    return [curves[index * len(curves) // count] for index in range(count)]


def _points(curve: list[float]) -> tuple[tuple[float, float], ...]:
    return tuple((float(layer), max(0.0, float(value))) for layer, value in enumerate(curve))


def _spans(record: dict[str, Any]) -> Iterator[Span]:
    """What becomes of the layers at the cut, each half a layer wide to both sides."""
    layers = len(record["median"])
    if not record["cut"]:
        yield Span(-0.5, layers - 0.5, _WITHOUT)
        return
    first, stop = record["cut"]["replaced"]
    yield Span(-0.5, first - 0.5, f"{_named(0, first)} · early, kept")
    yield Span(first - 0.5, stop - 0.5, f"{_named(first, stop)} · late, replaced by one")
    yield Span(stop - 0.5, layers - 0.5, _named(stop, layers))


def _named(first: int, stop: int) -> str:
    return f"{first}" if stop - first == 1 else f"{first}–{stop - 1}"
