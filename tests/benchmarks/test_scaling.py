"""Work of rows of several sizes, and the table of what they take."""

import json

import pytest
import scaling


def line(images=1, text=10, flops=100.0, attention=10.0, **measured):
    return {
        "images": images,
        "text": text,
        "tokens": text + images,
        "flops": flops,
        "attention": attention,
    } | measured


def test_what_is_not_attention_grows_as_the_row_does():
    few, more, most = (scaling.work("small", (1, length), 2) for length in (1000, 2000, 3000))
    rest = [work["flops"] - work["attention"] for work in (few, more, most)]
    assert rest[2] - rest[1] == pytest.approx(rest[1] - rest[0]) and rest[1] > rest[0]
    assert most["attention"] - more["attention"] > 1.5 * (more["attention"] - few["attention"])
    assert few["tokens"] == 1020 and scaling.work("small", (4, 1000), 2)["tokens"] == 1080


def test_a_batch_is_as_much_work_as_its_rows():
    one, four = (scaling.work("tiny", (2, 32), batch) for batch in (1, 4))
    assert four["flops"] == 4 * one["flops"] and four["attention"] == 4 * one["attention"]


def test_time_per_flop_is_relative_to_the_first_line_that_was_measured():
    found = scaling.table(
        [
            line(error="skipped: the time was up"),
            line(text=20, flops=100.0, seconds=[1.0, 2.0, 3.0]),
            line(text=40, flops=300.0, attention=150.0, seconds=[8.0, 9.0, 10.0]),
        ]
    )
    assert "skipped: the time was up" in found[2]
    assert found[3].endswith("| 10% | 1.00 | 1.00 | 1.00 |")
    assert found[4].endswith("| 50% | 4.50 | 3.00 | 1.50 |")


def test_a_table_without_any_figure_is_one_of_reasons():
    assert (
        "out of memory"
        in scaling.table([line(seconds=[], error="XlaRuntimeError: out of memory")])[2]
    )


def test_images_stand_beside_text_and_text_beside_an_image():
    assert scaling.axes([1, 8], [512]) == {"images": [(1, 128), (8, 128)], "text": [(1, 512)]}


def test_an_unknown_shape_is_refused(capsys):
    assert scaling.main(["--shapes", "huge"]) == 2
    assert "There is no shape 'huge'; there are tiny" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_measures_and_writes(tmp_path):
    given = [
        "--shapes",
        "tiny",
        "--images",
        "1",
        "--text",
        "16",
        "--rounds",
        "2",
        "--sample",
        "0.001",
    ]
    assert scaling.main([*given, "--out", str(tmp_path / "scaling")]) == 0
    record = json.loads((tmp_path / "scaling.json").read_text())
    for axis in ("images", "text"):
        assert len(record["shapes"]["tiny"][axis][0]["seconds"]) == 2
    assert "Text tokens a row, beside 1 image:" in (tmp_path / "scaling.md").read_text()
