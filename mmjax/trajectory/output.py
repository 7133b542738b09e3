"""The files of an analysis: its record, its chart and its page."""

import os
from pathlib import Path
from typing import Any

from mmjax.base.format import count, duration, percent, plural, readable
from mmjax.errors import InputError
from mmjax.report.charts import drawing, figure
from mmjax.report.html import Html, definitions, fold, join, missing, section, table, tag
from mmjax.report.page import document
from mmjax.runs.workdir import write_json

RECORD, DRAWING, PAGE = "trajectory.json", "trajectory.svg", "trajectory.html"

_MEASURES = {
    "positions": "The probabilities that a layer gives to the tokens which really follow, over the positions of a text and divided by "
    "their sum, are compared with those of the last layer by the Kullback-Leibler divergence sum q log(q / p), q the layer's. It says "
    "where in a text a layer predicts well, not how well.",
    "vocabulary": "A layer's distribution of the next token is compared with that of the last layer, over the whole vocabulary: the mean "
    "over the positions of a text of the Kullback-Leibler divergence sum q log(q / p), q the layer's.",
}
_LEAD = "Each layer's state goes through the model's own final norm and head, as if it were the last; nothing is trained. "
_READING = (
    "A layer whose prediction is already that of the model lies at 0, and the last layer does so by definition. Where the lines turn from "
    "a plateau to a common fall, the late phase begins: layers that mostly refine what is predicted. A surrogate replaces these, all but "
    "the last, by a single layer that is trained."
)
_CAUTION = (
    "The knee describes these samples by straight lines; whether the surrogate is any good is decided by training it. A curve that falls "
    "evenly has no knee, and a fit then finds one by chance: the confidence tells how much the cut depends on which samples were read, "
    "but nothing of texts of another kind, or of the other measure. That the range goes up to the last layer is the paper's choice, for "
    "large models; a small one may need more of its last layers."
)


def write(record: dict[str, Any], folder: Path) -> Path:
    """Writes the three files, each in one step, and returns the page's path. Raises InputError if the folder cannot be written."""
    try:
        write_json(folder / RECORD, record)
        for name, text in ((DRAWING, drawing(record)), (PAGE, render(record, folder))):
            temporary = folder / f".{name}.{os.getpid()}"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(folder / name)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}.") from None
    return folder / PAGE


def summarize(record: dict[str, Any]) -> list[str]:
    """The result in words, a sentence each."""
    cut, sure = record["cut"], record["confidence"]
    if not cut:
        return ["The median curve bends down nowhere: no cut is proposed."]
    first, stop = cut["replaced_layers"]
    several = stop - first > 1
    layers = f"layers {first} to {stop - 1} by one" if several else f"layer {first} by one like it"
    resampled = f"None of {sure['resamples']} resamples has a cut."
    if sure["interval"]:
        low, high = sure["interval"]
        where = f"layer {low}" if low == high else f"layers {low} to {high}"
        resampled = (
            f"{percent(sure['near'], 0)} of {sure['resamples']} resamples are cut within one layer of it, "
            f"and 90 % at {where}."
        )
    error, surrogate = percent(1 - cut["improvement"], 0), cut["surrogate"]
    return [
        f"Cut at layer {cut['layer']} of {record['model']['layers']}: a surrogate replaces {layers}, range [{first}, {stop}).",
        f"Confidence: {sure['verdict']}. {resampled} Two lines leave {error} of the squared error of one.",
        f"The surrogate would have {count(surrogate['parameters'])} parameters, {percent(surrogate['share'])} of the decoder's."
        + ("" if several else " It would save nothing: one layer stands for one."),
    ]


def render(record: dict[str, Any], folder: Path) -> str:
    """The page."""
    text, model = record["text"], record["model"]
    rows = zip(record["layers"], record["median"], *record["quartiles"], strict=True)
    cells = [[count(layer), *(f"{value:.4f}" for value in values)] for layer, *values in rows]
    curves = section(
        "Divergence by layer",
        figure(record),
        tag("p", _READING, class_="note"),
        tag("p", _CAUTION, class_="note"),
        fold(
            "The median and the quartiles",
            table(["layer", "median", "lower quartile", "upper quartile"], cells, "entries"),
        ),
        lead=_LEAD + _MEASURES[record["measure"]],
    )
    samples = plural(text["samples"], "sample")
    pairs = [
        ("text", f"{samples} of {text['file']}, {text['skipped']} too short"),
        ("tokens", f"{text['tokens']:,}, at most {text['longest']} a sample"),
        ("decoder", f"{count(model['parameters'])} parameters in {model['dtype']}"),
        ("time", duration(record["seconds"])),
        *(
            (readable(name), str(value))
            for part in ("hardware", "versions")
            for name, value in record[part].items()
        ),
    ]
    command = tag("p", tag("code", record["command"]), class_="note")
    made_with = section("Made with", definitions(pairs), command)
    body = join((_headline(record), curves, made_with), "\n")
    footer = ("Written by mmjax; the numbers are in ", tag("code", str(folder / RECORD)), ".")
    return document(f"{model['weights']} · prediction trajectory · mmjax", body, footer)


def _headline(record: dict[str, Any]) -> Html:
    """The title, and the cut in three figures."""
    text, cut, sure = record["text"], record["cut"], record["confidence"]
    figures: list[Html] = []
    if cut:
        first, stop = cut["replaced_layers"]
        error, surrogate = percent(1 - cut["improvement"], 0), cut["surrogate"]
        saved = "which saves nothing: one layer for one"
        if stop - first > 1:
            saved = f"one layer instead of {stop - first}, range [{first}, {stop})"
        near = f"{percent(sure['near'], 0)} of {sure['resamples']} resamples agree to one layer"
        triples = (
            (f"layer {first}", "begins the late phase", saved),
            (
                f"{sure['verdict']} confidence",
                "in this cut",
                f"{near}; two lines leave {error} of the squared error of one",
            ),
            (
                percent(surrogate["share"]),
                "of the parameters",
                f"{count(surrogate['parameters'])} in a surrogate",
            ),
        )
        for value, unit, note in triples:
            parts = tag("b", value), tag("span", unit), tag("small", note)
            figures.append(tag("div", *parts, class_="figure"))
    read = (
        f"{plural(record['model']['layers'], 'layer')}, {plural(text['samples'], 'sample')} of text, "
        f"{text['tokens']:,} tokens."
    )
    return tag(
        "header",
        tag("p", "mmjax · prediction trajectory", class_="eyebrow"),
        tag("h1", record["model"]["weights"]),
        tag("p", f"Where the prediction of a decoder settles. {read}", class_="subtitle"),
        tag("div", figures or missing(summarize(record)[0]), class_="figures"),
    )
