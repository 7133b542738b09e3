"""The page of a run, read as markup."""

import importlib
import json
import math
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mmjax import report
from mmjax.errors import InputError
from mmjax.report import __main__, reading, savings, sections
from mmjax.report.sections import curves, examples
from tests.ledger import runs

SECTIONS = (
    "Ledger",
    "Scores",
    "Loss",
    "Answers",
    "Attention",
    "Parameters",
    "What the model reads",
    "Made with",
)
HOSTILE_NAME = "<b>other"
HOSTILE = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\" onmouseover='alert(3)' &amp; \x00\x1b\udc80 ｎｉｃｅ"


class Page(HTMLParser):
    """Every tag with its attributes, and the text by the section that it stands in."""

    def __init__(self, markup: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.current = "head"
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.current = data
        if "style" not in self.open:
            self.sections[self.current] = self.sections.get(self.current, "") + data + " "

    @property
    def text(self) -> str:
        return " ".join(self.sections.values())


def render(workdir: Path) -> Page:
    page = Page(report.render(workdir))
    assert not page.open, "every element is closed"
    return page


def change(path: Path, edit: object) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_a_finished_run_misses_nothing(workdir: Path) -> None:
    page = render(workdir)
    assert set(SECTIONS) <= set(page.sections)
    assert not [
        attributes for _, attributes in page.tags if "missing" in (attributes.get("class") or "")
    ]
    for shown in (
        "99.1 %",
        "9,673 questions",
        "question only 67.0 %",
        "untrained 0.1 %",
        "6 min 39 s",
        "32,000",
        "600 TFLOP",
    ):
        assert shown in page.sections["head"]
    assert "34.8 %" in page.sections["Scores"] and "7,136" in page.sections["Scores"]
    assert (
        "20" in page.sections["Ledger"]
        and "84 visual tokens of an image of 64 pixels" in page.sections["Ledger"]
    )
    assert "step 6 min 9 s" in page.sections["Ledger"]
    assert (
        "resize positions" in page.sections["Parameters"] and "tiled" in page.sections["Parameters"]
    )
    assert "jax 0.11.2" in " ".join(page.sections["Made with"].split())
    assert '"learning_rate": 0.0007' in page.sections["Made with"]


def test_nothing_is_loaded_from_anywhere(workdir: Path) -> None:
    page = render(workdir)
    for tag, attributes in page.tags:
        assert tag not in (
            "script",
            "link",
            "iframe",
            "object",
            "embed",
            "base",
            "audio",
            "video",
            "source",
            "form",
            "use",
            "image",
        )
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "xlink:href", "srcset", "action", "background", "style"):
            assert name not in attributes
        assert (attributes.get("src") or "data:image/png;base64,").startswith(
            "data:image/png;base64,"
        )
    style = report.render(workdir).partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in report.render(workdir)


def test_hostile_text_stays_text(workdir: Path) -> None:
    """Every text that a run can put into its files, in every place."""
    records = [
        json.loads(line) for line in (workdir / "predictions.jsonl").read_text().splitlines()
    ]
    hostile = [
        {
            **record,
            "question": HOSTILE,
            "prediction": HOSTILE,
            "reference": HOSTILE + "!",
            "type": HOSTILE,
            "id": HOSTILE,
        }
        for record in records
    ]
    (workdir / "predictions.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in hostile)
    )
    change(workdir / "summary.json", lambda summary: summary["versions"].update({HOSTILE: HOSTILE}))
    change(
        workdir / "summary.json",
        lambda summary: summary.update(eval={HOSTILE: summary["eval"]["easy_vqa"]}),
    )
    change(workdir / "config.json", lambda config: config["notes"].update({HOSTILE: HOSTILE}))
    change(
        workdir / "manifests" / "finetune.json",
        lambda manifest: manifest["entries"][0].update(target=HOSTILE, note=HOSTILE),
    )
    (workdir / "previews" / "finetune.txt").write_text(HOSTILE, errors="replace")
    page = render(workdir)
    assert [tag for tag, _ in page.tags if tag == "script"] == []
    assert not [
        attributes
        for _, attributes in page.tags
        if any(name.startswith("on") for name in attributes)
    ]
    assert page.text.count("<script>alert(1)</script>") > 60
    assert "\N{REPLACEMENT CHARACTER}" in page.text and "\x00" not in page.text
    report.write(workdir)  # lone surrogates can be written, too
    (workdir / "report.html").read_text(encoding="utf-8")


def test_an_unfinished_run_says_what_is_missing(workdir: Path) -> None:
    for name in ("metrics.jsonl", "predictions.jsonl", "attention.npz"):
        (workdir / name).unlink()
    shutil.rmtree(workdir / "manifests")
    shutil.rmtree(workdir / "previews")
    change(
        workdir / "summary.json",
        lambda summary: summary.update(stages=summary["stages"][:1], eval={}),
    )
    page = render(workdir)
    assert (
        "not finished: finetune" in page.sections["head"]
        and "not evaluated" in page.sections["head"]
    )
    assert "Not in the summary: finetune" in page.sections["Ledger"]
    assert "not evaluated" in page.sections["Scores"]
    assert "There is no metrics.jsonl." in page.sections["Loss"]
    assert "There is no predictions.jsonl." in page.sections["Answers"]
    assert "There is no attention.npz." in page.sections["Attention"]
    assert "There are no manifests." in page.sections["Parameters"]
    assert "There are no previews." in page.sections["What the model reads"]


def test_skipped_samples_are_shown_with_an_example_of_each_cause(workdir: Path) -> None:
    assert "Skipped" not in render(workdir).text
    skipped = {
        "skipped": {"corrupt image": 1200, "bad JSON": 2},
        "skip_examples": {"corrupt image": f"a.jsonl/3: {HOSTILE}"},
    }
    change(workdir / "summary.json", lambda summary: summary["stages"][0].update(skipped))
    change(
        workdir / "summary.json",
        lambda summary: summary["stages"][1].update(skipped={"bad JSON": 0}),
    )
    ledger = " ".join(render(workdir).sections["Ledger"].split())
    assert (
        "Skipped samples" in ledger
        and "pretrain: 1,202 samples corrupt image: 1,200, such as a.jsonl/3: </style>" in ledger
    )
    assert "bad JSON: 2" in ledger and "finetune: " not in ledger


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_one_of_the_two_main_files_is_enough(workdir: Path, name: str) -> None:
    (workdir / name).unlink()
    page = render(workdir)
    assert f"There is no {name}." in page.text
    unknown = "The cost beside the last stage's model cannot be computed: config.name is missing"
    assert (unknown in page.text) == (name == "config.json")


def test_damaged_files_are_named(workdir: Path) -> None:
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "finetune", "step": 5')  # a process was killed while it wrote
    (workdir / "attention.npz").write_bytes(b"PK\x03\x04 not really")
    (workdir / "manifests" / "pretrain.json").write_text("{")
    page = render(workdir)
    assert "Skipped in metrics.jsonl: 1 line that cannot be read." in page.sections["Loss"]
    assert "attention.npz cannot be read" in page.sections["Attention"]
    assert "pretrain.json cannot be read" in page.sections["Parameters"]


def test_a_run_without_held_out_loss_or_queries(workdir: Path) -> None:
    lines = [
        line
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
        if "holdout/" not in line
    ]
    (workdir / "metrics.jsonl").write_text("\n".join(lines))
    np.savez(
        workdir / "attention.npz",
        image=np.zeros((64, 64, 3), np.uint8),
        windows=np.zeros(0, int),
        name=np.array("x"),
    )
    page = render(workdir)
    assert "No held-out loss has been logged." in page.sections["Loss"]
    assert "Attention" not in page.sections


def test_images_that_are_gone(workdir: Path) -> None:
    shutil.rmtree(workdir.parent / "images")
    page = render(workdir)
    assert page.sections["Answers"].count("the image is not on this computer") >= 24


def test_examples_are_not_chosen_by_whether_they_are_right(workdir: Path) -> None:
    records = reading.read(workdir).predictions
    chosen = examples.choose(records, 24)
    flipped = [
        {**record, "prediction": "?" if examples.is_right(record) else record["reference"]}
        for record in records
    ]
    assert [record["image"] for record in chosen] == [
        record["image"] for record in examples.choose(flipped, 24)
    ]
    assert len({record["image"] for record in chosen}) == 24
    assert [
        sum(record["type"] == kind for record in chosen) for kind in ("color", "shape", "yes_no")
    ] == [8, 8, 8]


def test_mistakes_carry_a_sign(workdir: Path) -> None:
    page = render(workdir)
    cards = [
        attributes["class"]
        for tag, attributes in page.tags
        if tag == "figure" and "card" in (attributes.get("class") or "")
    ]
    records = reading.read(workdir).predictions
    wrong = sum(not examples.is_right(record) for record in records)
    assert len(cards) - cards.count("card") == wrong == 6, "all mistakes are few enough to be shown"
    assert len(cards) == 24 + wrong - sum(
        not examples.is_right(record) for record in examples.choose(records, 24)
    )
    assert "6 predictions of 180 are wrong" in page.sections["Answers"]


def caption_result(**changes: object) -> dict:
    return {
        "score": 1.234,
        "by_type": {"stamps": 1.234},
        "n": 40,
        "n_by_type": {"stamps": 40},
        "baselines": {"question_only": 0.021},
        "baselines_by_type": {"question_only": {"stamps": 0.021}},
        "metric": "CIDEr-D",
        "reference_score": 5.25,
        "nll": 2.3456,
        "nll_shuffled": 2.9876,
        "nll_per_caption": 12.3,
    } | changes


def caption_records() -> str:
    record = {
        "task": "captions",
        "type": "stamps",
        "question": "",
        "reference": "A frog.",
        "prediction": "A toad.",
    }
    return "".join(
        json.dumps(record | {"id": f"x/{index}", "image": f"{index}.png"}) + "\n"
        for index in range(40)
    )


def test_captions_beside_questions(workdir: Path) -> None:
    before = render(workdir)
    with (workdir / "predictions.jsonl").open("a") as file:
        file.write(caption_records())
    change(
        workdir / "summary.json", lambda summary: summary["eval"].update(captions=caption_result())
    )
    page = render(workdir)
    head = " ".join(page.sections["head"].split())
    assert (
        "99.1 % right answers" in head
        and "1.23 CIDEr-D captions, 40 held-out images; question only 0.02" in head
    )
    scores = " ".join(page.sections["Scores"].split())
    assert (
        "captions, CIDEr-D" in scores
        and "all 40" in scores
        and "the most frequent training caption" in scores
    )
    for shown in ("5.25", "2.346", "2.988", "12.30"):
        assert shown in scores
    assert "%" not in scores.partition("captions, CIDEr-D")[2]
    bars = [
        attributes
        for tag, attributes in page.tags
        if tag == "rect" and attributes.get("class") == "model"
    ]
    assert float(bars[-1]["width"] or 0) == pytest.approx(1000 * 1.234 / 5.25, abs=0.01), (
        "a bar is full at what the true captions score"
    )
    answers = " ".join(page.sections["Answers"].split())
    assert answers.startswith(" ".join(before.sections["Answers"].split())[:200]), (
        "questions are as they were without captions"
    )
    assert (
        "24 held-out images, evenly spaced through 40 captions" in answers
        and "6 predictions of 180 are wrong" in answers
    )
    cards = [
        attributes["class"]
        for tag, attributes in page.tags
        if tag == "figure" and "card" in (attributes.get("class") or "")
    ]
    assert cards[-24:] == ["card"] * 24, "a caption is neither right nor wrong"


def test_captions_alone_and_without_other_images(workdir: Path) -> None:
    (workdir / "predictions.jsonl").write_text(caption_records())
    result = caption_result(nll_shuffled=None, score=0.0, reference_score=0.0)
    change(workdir / "summary.json", lambda summary: summary.update(eval={"captions": result}))
    page = render(workdir)
    assert (
        "wrong" not in page.sections["Answers"] and "reference: A frog." in page.sections["Answers"]
    )
    assert "there are none" in page.sections["Scores"]


def test_curves_put_stages_behind_each_other(workdir: Path) -> None:
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(
            '{"stage": "finetune", "step": 100, "loss": 0.5}\n{"stage": "finetune", "step": 150, "loss": null}\n'
        )
        file.write('{"stage": "finetune", "step": 200, "loss": NaN}\n')
    run = reading.read(workdir)
    spans = curves._spans(run)
    assert [(span.start, span.stop) for span in spans.values()] == [(0, 1500), (1500, 2000)]
    first, second = curves._series(run, spans, "loss", "training", "train")
    assert first.points[-1][0] == 1500 and second.points[0][0] == 1550
    assert (1600.0, 0.5) in second.points, "the line that was logged last counts"
    assert all(math.isfinite(value) for _, value in second.points) and not any(
        x == 1700 for x, _ in second.points
    )


def test_cost_beside_the_last_model(workdir: Path) -> None:
    shares = savings.shares_of_last_model(reading.read(workdir))
    assert shares["finetune"] == 1.0
    assert 0.2 < shares["pretrain"] < 0.4, (
        "20 tokens of a 32-pixel image beside 84 of a 64-pixel one"
    )


def test_device_time_where_there_are_several_devices(workdir: Path) -> None:
    assert "device time" not in render(workdir).sections["Ledger"]
    change(
        workdir / "summary.json",
        lambda summary: summary["stages"][1].update(devices=8, device_seconds=8 * 218.2),
    )
    ledger = " ".join(render(workdir).sections["Ledger"].split())
    assert "devices – 8" in ledger and "device time – 29 min 6 s" in ledger, (
        "the other entry is of an older version"
    )


def test_what_a_run_saves_against_another(workdir: Path) -> None:
    assert "What it saves" not in render(workdir).sections["Ledger"]
    other = runs.write(workdir.parent / HOSTILE_NAME, runs.baseline())
    ledger = " ".join(Page(report.render(workdir, other)).sections["Ledger"].split())
    assert f"What it saves against {other}" in ledger
    assert "this run 6 min 39 s 6 min 39 s 600 TFLOP" in ledger, (
        "device time of an older summary: of the devices of the run"
    )
    assert (
        f"saving {100 * (1 - 398.7 / 34.79 / 3600):.1f} % {100 * (1 - 398.7 / 34.79 / 3600 / 16):.1f} % 100.0 %"
        in ledger
    )
    assert f"before the last stage {100 * (1 - 180.5 / 7.01 / 3600):.1f} %" in ledger
    assert "The devices differ" in ledger and "1 x cpu of 2 cores" in ledger


def test_a_run_that_is_not_finished_saves_nothing_yet(workdir: Path) -> None:
    other = runs.write(workdir.parent / "other", runs.baseline())
    change(workdir / "summary.json", lambda summary: summary.update(stages=summary["stages"][:1]))
    ledger = Page(report.render(workdir, other)).sections["Ledger"]
    assert (
        "The saving cannot be computed: cos: the run is not finished; its summary.json lacks finetune."
        in ledger
    )
    with pytest.raises(InputError, match="lacks finetune"):
        report.render(other, workdir)


def test_is_written_in_one_step_and_again(workdir: Path) -> None:
    first = report.write(workdir)
    assert first == workdir / "report.html"
    before = first.read_bytes()
    report.write(workdir)
    assert first.read_bytes() == before
    assert not [path for path in workdir.iterdir() if path.name.startswith(".report")]


def test_command(workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmjax.report", str(workdir)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(workdir / "report.html"))
    assert __main__.main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "is not the workdir of a run" in said
    assert __main__.main([str(workdir), f"--against={workdir}"]) == 0
    assert "0.0 %" in (workdir / "report.html").read_text()
    assert __main__.main([str(workdir), f"--against={tmp_path}"]) == 2


def test_no_workdir(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither config"):
        report.render(tmp_path)


def test_a_section_of_ones_own_is_one_file(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands where its ORDER says: between the loss and the answers."""
    folder = tmp_path / "sections"
    folder.mkdir()
    (folder / "own.py").write_text(
        "from mmjax.report.html import section\nORDER = 55\n"
        "def render(run): return section('Own', f'of {run.name}')\n"
    )
    monkeypatch.setattr(sections, "__path__", [*sections.__path__, str(folder)])
    importlib.invalidate_caches()
    try:
        titles = list(render(workdir).sections)
    finally:
        sys.modules.pop("mmjax.report.sections.own")
        del sections.own
    place = titles.index("Own")
    assert titles[place - 1 : place + 2] == ["Loss", "Own", "Answers"]
