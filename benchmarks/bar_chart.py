"""Groups of bars as an SVG image: panels one below the other, with ticks, values above the bars, and lines across groups."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from mmjax.report.charts import linear_ticks, logarithmic_ticks
from mmjax.report.html import Html, tag

_BAR, _LETTER, _GAP, _LEFT, _RIGHT = 15, 7, 34, 70, 20
_HEIGHT, _ABOVE, _BELOW = 250, 56, 46  # of a panel's bars, its heading and its labels
_TOP = 64
_NAME = 150  # of the legend
_GREY = "#444444"
# Of text that stands over lines.
_OUTLINE: dict[str, str | float] = {"stroke": "#ffffff", "stroke_width": 3, "paint_order": "stroke"}
_FONT = "font-family: system-ui, 'DejaVu Sans', sans-serif"


@dataclasses.dataclass(frozen=True)
class Panel:
    """Groups of bars side by side.

    Attributes:
        groups: (label, {implementation: value}) from left to right; values are positive.
        lines: {label: value} of the lines across groups.
    """

    title: str
    unit: str
    groups: tuple[tuple[str, dict[str, float]], ...]
    lines: dict[str, float] = dataclasses.field(default_factory=dict)
    logarithmic: bool = False


def image(
    panels: Sequence[Panel], title: str, colours: Mapping[str, str], *, label: str, line: str = ""
) -> Html:
    """Panels under a title and a legend.

    Args:
        colours: by name of the bars; others are grey.
        label: what the image shows, for those who cannot see it; line: what the lines across groups are.
    """
    names = [
        *dict.fromkeys(name for panel in panels for _, values in panel.groups for name in values)
    ]
    widest = max(sum(_width(label, values) for label, values in panel.groups) for panel in panels)
    width = max(_LEFT + widest + _RIGHT, 760, _LEFT + _NAME * len(names))
    each = _ABOVE + _HEIGHT + _BELOW
    height = _TOP + each * len(panels)
    return tag(
        "svg",
        tag("rect", width=width, height=height, fill="#ffffff"),
        tag("text", title, x=_LEFT, y=26, font_size=17, font_weight="bold"),
        [
            _legend(name, colours.get(name, _GREY), _LEFT + _NAME * number)
            for number, name in enumerate(names)
        ],
        [
            _panel(panel, _TOP + each * number, width, colours, line)
            for number, panel in enumerate(panels)
        ],
        xmlns="http://www.w3.org/2000/svg",
        width=width,
        height=height,
        viewBox=f"0 0 {width} {height}",
        style=_FONT,
        role="img",
        aria_label=label,
    )


def _width(label: str, values: dict[str, float]) -> int:
    return max(_BAR * len(values), _LETTER * len(label)) + _GAP


def _legend(name: str, colour: str, x: int) -> Html:
    return tag(
        "g",
        tag("rect", x=x, y=42, width=12, height=12, fill=colour),
        tag("text", name, x=x + 17, y=53, font_size=13),
    )


def _panel(panel: Panel, top: int, width: int, colours: Mapping[str, str], line: str) -> Html:
    values = [value for _, group in panel.groups for value in group.values()]
    values = [*values, *panel.lines.values()] or [1.0]
    ticks, (low, high) = (
        logarithmic_ticks(min(values), max(values))
        if panel.logarithmic
        else linear_ticks(0.0, max(values), 5)
    )
    base, right, y = top + _ABOVE + _HEIGHT, width - _RIGHT, top + 24

    def up(value: float) -> float:
        if panel.logarithmic:
            return base - _HEIGHT * math.log(value / low) / math.log(high / low)
        return base - _HEIGHT * (value - low) / (high - low)

    title = f"{panel.title}, {panel.unit}"
    parts = [tag("text", title, x=_LEFT, y=y, font_size=15, font_weight="bold")]
    if panel.lines:
        style: dict[str, str | float] = {"text_anchor": "end", "fill": "#555555"}
        parts.append(tag("text", line, x=right, y=y, font_size=13, **style))
    for tick in ticks:
        y = up(tick)
        parts.append(tag("line", x1=_LEFT, x2=right, y1=y, y2=y, stroke="#dddddd"))
        parts.append(
            tag("text", f"{tick:g}", x=_LEFT - 8, y=y + 4, font_size=12, text_anchor="end")
        )
    x = _LEFT + _GAP / 2
    for label, group in panel.groups:
        inner = _width(label, group) - _GAP
        if label in panel.lines:
            y, style = up(panel.lines[label]), {"stroke": "#111111", "stroke_width": 2}
            parts.append(tag("line", x1=x - 6, x2=x + inner + 6, y1=y, y2=y, **style))
        begin = x + (inner - _BAR * len(group)) / 2
        for number, (name, value) in enumerate(group.items()):
            colour = colours.get(name, _GREY)
            parts.append(_bar(name, value, colour, begin + _BAR * number, up(value), base))
        place = {"x": x + inner / 2, "y": base + 18}
        parts.append(tag("text", label, **place, font_size=12, text_anchor="middle"))
        x += inner + _GAP
    return tag("g", parts)


def _bar(name: str, value: float, colour: str, x: float, top: float, base: float) -> Html:
    written = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    place = f"rotate(-90 {x + _BAR / 2 + 4:.1f} {top - 4:.1f})"
    return tag(
        "g",
        tag(
            "rect",
            tag("title", f"{name}: {value:.4g}"),
            x=x,
            y=top,
            width=_BAR - 2,
            height=base - top,
            fill=colour,
        ),
        tag(
            "text",
            written,
            x=x + _BAR / 2 + 4,
            y=top - 4,
            font_size=11,
            transform=place,
            **_OUTLINE,
        ),
    )
