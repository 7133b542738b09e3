"""Markup, numbers in words, and ticks."""

import html

from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.report.charts import Axes, ChartSpan, Series, line_chart, linear_ticks, logarithmic_ticks
from mmjax.report.html import Html, escape, join, tag


@given(st.text())
def test_text_survives_escaping(text: str) -> None:
    assert all(character not in escape(text) for character in "<>\"'")
    allowed = "".join(
        c
        for c in text
        if (c in "\t\n\r" or ord(c) >= 32)
        and not 0x7F <= ord(c) <= 0x9F
        and not 0xD800 <= ord(c) <= 0xDFFF
    )
    assert html.unescape(escape(text)).replace("\ufffd", "") == allowed.replace("\ufffd", "")
    escape(text).encode("utf-8")


def test_elements() -> None:
    assert tag("p", "a < b", class_="x") == '<p class="x">a &lt; b</p>'
    assert (
        tag("p", tag("b", "bold"), None, ["x", Html("<i>y</i>")]) == "<p><b>bold</b>x<i>y</i></p>"
    )
    assert tag("img", src="a", alt=None) == '<img src="a">'
    assert tag("circle", r=3, stroke_width=1.5) == '<circle r="3" stroke-width="1.5"/>'
    assert tag("text", x=1 / 3) == '<text x="0.33"></text>'
    assert join(["<", Html("<br>")], ", ") == "&lt;, <br>"


positive = st.floats(1e-6, 1e6)


@given(positive, positive)
def test_logarithmic_ticks_enclose_the_data(one: float, other: float) -> None:
    low, high = sorted((one, other))
    ticks, (bottom, top) = logarithmic_ticks(low, high)
    assert bottom <= low * 1.001 and top >= high * 0.999 and bottom < top
    assert all(bottom <= tick <= top for tick in ticks) and len(ticks) <= 16


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_linear_ticks_enclose_the_data(one: float, other: float) -> None:
    low, high = sorted((one, other))
    ticks, (bottom, top) = linear_ticks(low, high, 5)
    step = ticks[1] - ticks[0]
    assert bottom <= low + 1e-6 * step and top >= high - 0.01 * step and bottom < top
    assert 2 <= len(ticks) <= 12


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), positive), min_size=1, max_size=30), st.booleans())
def test_every_chart_can_be_drawn(points: list[tuple[float, float]], logarithmic: bool) -> None:
    drawn = line_chart(
        [Series("loss", "train", tuple(sorted(points)), draw_points=True)],
        Axes("step", "loss", (ChartSpan(0, 100, "only"),), logarithmic),
    )
    assert drawn.count("<svg") == 2 and "nan" not in drawn and "inf" not in drawn


def test_long_series_are_thinned_but_keep_their_ends() -> None:
    points = tuple((float(step), 1.0 + step) for step in range(5000))
    drawn = line_chart(
        [Series("loss", "train", points)],
        Axes("step", "loss", (ChartSpan(0, 4999, "only"),), False),
    )
    assert len(drawn) < 40_000
    assert ">4,000<" in drawn
