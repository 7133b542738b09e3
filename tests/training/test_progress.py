"""What a person sees: lines in a file, a bar on a terminal."""

import io

from rich.console import Console

from mmjax.training.flops import MFU_FORMULA
from mmjax.training.logging import StageProgress, describe

METRICS = {
    "loss": 1.23456,
    "token_accuracy": 0.5,
    "steps_per_second": 2.0,
    "images_per_second": 64.0,
    "tokens_per_second": 12345.6,
    "mfu": 0.412,
}


def show(terminal: bool, *logs: tuple[int, dict]) -> str:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=200)
    with StageProgress("pretrain", 100, 0, console) as progress:
        progress.note("first batch in 0.4 s [of many]")
        for step, metrics in logs:
            progress.advance(step)
            progress.log(step, metrics)
    return screen.getvalue()


def test_a_line_names_every_number():
    assert (
        describe(METRICS)
        == "loss 1.2346  accuracy 50.0%  2 steps/s  64 images/s  12,346 tokens/s  MFU 41.2%"
    )
    assert describe({"holdout/loss": 2.0, "gradient_norm": 1.0}) == "held-out loss 2.0000"


def test_skipped_samples_are_said_with_their_causes():
    counts = {
        "loss": 1.0,
        "skipped/bad JSON": 2.0,
        "skipped/corrupt image": 1200.0,
        "skipped/missing image": 0.0,
    }
    assert describe(counts) == "loss 1.0000  1,202 skipped (corrupt image: 1,200, bad JSON: 2)"
    assert describe({"loss": 1.0, "skipped/bad JSON": 0.0}) == "loss 1.0000"
    assert "1,202 skipped" in show(False, (50, counts)) and "1,202 skipped" in show(
        True, (50, counts)
    )


def test_elsewhere_than_on_a_terminal_there_are_plain_lines():
    lines = show(False, (50, METRICS), (100, METRICS)).splitlines()
    assert lines[0] == "pretrain: first batch in 0.4 s [of many]"
    assert lines[1] == f"pretrain: step 50/100  {describe(METRICS)}  0:00:25 left"
    assert lines[2] == f"pretrain: step 100/100  {describe(METRICS)}"


def test_on_a_terminal_there_is_a_bar():
    screen = show(True, (50, METRICS), (60, {"holdout/loss": 2.0}))
    assert "60/100" in screen and "pretrain: first batch in 0.4 s [of many]" in screen
    assert "loss 1.2346" in screen and "held-out loss 2.0000" in screen


def test_the_formula_is_printed_once():
    screen = io.StringIO()
    console = Console(file=screen, width=80)
    for stage in ("pretrain", "finetune"):
        StageProgress(stage, 1, 0, console).explain_mfu(989e12)
    assert screen.getvalue().count(MFU_FORMULA) == 1
    assert screen.getvalue().count("MFU is measured against 989 TFLOP/s a device") == 2


def test_an_unknown_peak_is_said():
    screen = io.StringIO()
    StageProgress("pretrain", 1, 0, Console(file=screen, width=80)).explain_mfu(None)
    assert "logging.peak_flops" in screen.getvalue() and MFU_FORMULA not in screen.getvalue()
