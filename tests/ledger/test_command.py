"""python -m mmjax.ledger: the table, the file, and one message for what is wrong."""

import io
import json

import pytest
from rich.console import Console

from mmjax.ledger.__main__ import main
from tests.ledger import runs


def run(*arguments: object) -> tuple[int, str]:
    out = io.StringIO()
    return main(
        [str(argument) for argument in arguments], Console(file=out, width=80)
    ), out.getvalue()


def test_the_table_shows_both_runs_and_three_savings(tmp_path):
    ours = runs.write(tmp_path / "[bold]ours", runs.grafted())
    code, text = run(ours, f"--against={runs.write(tmp_path / 'baseline', runs.baseline())}")
    assert code == 0
    words = text.split()
    for shown in (
        "translators",
        "encoder",
        "pretrain",
        "9.36",
        "19.17",
        "34.79",
        "197.84",
        "80.0",
        "44.9",
        "64.5",
        "38.5",
        "-94.2",
    ):
        assert shown in words, shown
    assert "[bold]ours, on 8 and 16 x H100" in text and "numbers of devices differ" in text
    assert "Before the last stage, ours has 2 stages and the baseline 1" in text
    table = [line for line in text.splitlines() if "│" in line]
    assert len(table) == 11 and all(len(line) <= 80 for line in table), (
        "fits a terminal, without a line cut in two"
    )


def test_names_are_no_markup(tmp_path):
    summary = runs.baseline()
    summary["stages"][0]["name"] = "[red]x"
    folder = runs.write(tmp_path / "run", summary)
    assert "  [red]x " in run(folder, f"--against={folder}")[1]


def test_the_same_numbers_as_json(tmp_path):
    ours, other = (
        runs.write(tmp_path / "ours", runs.grafted()),
        runs.write(tmp_path / "baseline", runs.baseline()),
    )
    code, _ = run(ours, f"--against={other}", f"--json={tmp_path / 'saving.json'}")
    content = json.loads((tmp_path / "saving.json").read_text())
    assert code == 0 and content["saving"]["seconds"] == pytest.approx(1 - 19.17 / 34.79)
    assert content["run"]["name"] == str(ours) and "unlike work" in content["reservations"][0]


def test_what_is_wrong_is_one_message(tmp_path, capsys):
    ours, other = (
        runs.write(tmp_path / "ours", runs.grafted()),
        runs.write(tmp_path / "other", runs.baseline(), "more"),
    )
    for arguments, message in [
        ((ours, f"--against={tmp_path / 'none'}"), "There is no folder"),
        ((ours, f"--against={other}"), "lacks more"),
        ((other, f"--against={ours}"), "lacks more"),
        (
            (ours, f"--against={ours}", f"--json={tmp_path / 'none' / 'x.json'}"),
            "cannot be written",
        ),
    ]:
        assert run(*arguments)[0] == 2
        error = capsys.readouterr().err
        assert error.startswith("mmjax: ") and message in error and error.count("\n") == 1


def test_a_baseline_is_needed(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path)])
    assert ended.value.code == 2 and "--against" in capsys.readouterr().err
