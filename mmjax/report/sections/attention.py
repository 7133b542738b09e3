"""Where each scale of a connector with queries looks in one image."""

import numpy as np

from mmjax.base.format import plural
from mmjax.report.html import Html, join, missing, section, tag
from mmjax.report.images import FULL_TINT, heat, image
from mmjax.report.reading import Run

ORDER = 70

_QUERIES = 4  # shown one by one, after their mean


def render(run: Run) -> Html:
    """The section; nothing for a connector without queries."""
    arrays = run.attention
    if not arrays:
        return section(
            "Attention", missing(run.problems.get("attention.npz", "attention.npz is empty."))
        )
    scales = [name for name in sorted(arrays) if name.startswith("scale_")]
    if not scales:
        return join(())
    pixels = arrays["image"]
    name = str(arrays["name"]) if "name" in arrays else "an image"
    caption = f"{name}, as the encoder reads it: {len(pixels)} pixels a side."
    return section(
        "Attention",
        tag(
            "div",
            image(pixels, "the image", scale=max(1, 224 // len(pixels))),
            tag("p", caption),
            class_="evaluated",
        ),
        [
            _scale(number, arrays[name], int(arrays["windows"][number]), pixels)
            for number, name in enumerate(scales)
        ],
        lead="Softmax weights of the connector's queries over the patches of their window, mean over heads, of the last feature layer. "
        f"A patch without tint gets no more than an equal share of its window; the deepest tint is {FULL_TINT} equal shares, or all of a "
        "smaller window. White lines part the windows.",
    )


def _scale(number: int, weights: np.ndarray, window: int, pixels: np.ndarray) -> Html:
    """A row of maps: the mean over the queries of each window, then its first queries one by one."""
    maps = weights[-1]  # [queries per window, P, P] of the last feature layer
    grid = maps.shape[-1]
    windows = (grid // window) ** 2
    queries = len(maps)
    each = " each" if windows > 1 else ""
    title = f"Scale {number + 1}: {plural(windows, 'window')} of {window} x {window} patches, {plural(queries, 'query', 'queries')}{each}"
    shown = [
        ("mean of the queries" if queries > 1 else "the query of each window", maps.mean(axis=0))
    ]
    if queries > 1:
        shown += [(f"query {index + 1}", one) for index, one in enumerate(maps[:_QUERIES])]
    figures = [
        tag(
            "figure",
            image(heat(pixels, one, window), f"{title}, {label}"),
            tag("figcaption", label),
        )
        for label, one in shown
    ]
    return tag("div", tag("h3", title), tag("div", figures, class_="maps"), class_="scale")
