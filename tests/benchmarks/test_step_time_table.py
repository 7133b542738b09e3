"""Tables, JSON and image of the step-time benchmark, from figures that are made up."""

import json
import pathlib
import xml.etree.ElementTree as ElementTree

import pytest
import step_time
import step_time_chart
import step_time_table

SVG = "{http://www.w3.org/2000/svg}"
FIRST = {
    "first_steps": [3.0, 0.2, 0.2],
    "losses": [2.5, 2.4, 2.3],
    "norms": [1.25, 1.0, 1.0],
    "steps": 5,
}


def worker(*seconds: float, memory: float = 2**31, **more) -> dict:
    return {**FIRST, "seconds": list(seconds), "memory": memory, **more}


def record() -> dict:
    timed = {
        "name": "packed",
        "title": "2 rows of 512 text tokens",
        "scaled": {"model.decoder.width": (2048, 256)},
        "compared": True,
        "samples": 16,
        "tokens": 800.0,
        "flops": 1e12,
        "padding": {"mmjax": 0.2, "torch": 0.6},
        "workers": {
            "mmjax": worker(0.1, 0.2, 0.4),
            "eager": worker(0.4, 0.4, 0.4, backends={"causal, 2 x 4": "flash (flash 1 ms)"}),
            "compile": worker(0.2, 0.1, 0.8, remark="compiled whole"),
            "max-autotune": worker(0.5, 0.5, beside=[0.25, 0.25]),
        },
    }
    failed = {
        **timed,
        "name": "llm_1b",
        "scaled": {},
        "compared": False,
        "padding": {"mmjax": 0.0, "torch": 0.0},
    }
    failed |= {
        "failed": "torch eager: the loss is off",
        "workers": {"mmjax": dict(FIRST), "eager": {"error": "RuntimeError: a|b"}},
    }
    return {
        "date": "2026-01-01", "command": "python benchmarks/step_time.py", "versions": {"jax": "0"},
        "device": "a processor", "on_cpu": True,
        "peak_flops": 10e12, "shapes": [timed, failed], "skipped": {"surrogate": "no time was left"},
    }  # fmt: skip


def row(text: str, shape: str, name: str) -> dict[str, str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {shape} | {name} |")]
    return dict(
        zip(
            step_time_table.COLUMNS,
            (cell.strip() for cell in line.strip("|").split("|")),
            strict=True,
        )
    )


def test_a_line_has_time_rates_utilisation_and_memory():
    cells = row(step_time_table.page(record()), "packed", "mmjax")
    assert cells["ms per step: median (min-max)"] == "200 (100-400)"
    assert (cells["samples/s"], cells["tokens/s"], cells["MFU"], cells["peak memory"]) == (
        "80",
        "4000",
        "50.0%",
        "2.00 GiB",
    )
    assert (cells["first step"], cells["first loss, gradient norm"]) == ("3.0 s", "2.5, 1.25")
    assert cells["mmjax / worker: median of rounds (min-max)"] == "-"


def test_ratios_are_taken_round_by_round():
    page = step_time_table.page(record())
    column = "mmjax / worker: median of rounds (min-max)"
    assert row(page, "packed", "torch eager")[column] == "0.50 (0.25-1.00)"
    assert row(page, "packed", "torch.compile")[column] == "0.50 (0.50-2.00)", (
        "the ratio of the medians would be 1"
    )
    assert row(page, "packed", "torch.compile max-autotune")[column] == "0.50 (0.50-0.50)", (
        "its rounds are its own"
    )
    assert row(page, "packed", "torch.compile")["remarks"] == "compiled whole"


def test_a_failure_is_a_line_and_a_word():
    page = step_time_table.page(record())
    assert row(page, "llm_1b", "torch eager")["remarks"] == "failed: RuntimeError: a/b"
    assert row(page, "llm_1b", "mmjax")["samples/s"] == "-"
    assert "FAILED: llm_1b: torch eager: the loss is off" in page
    assert step_time_table.failures(record()) == ["llm_1b: torch eager: the loss is off"]


def test_the_page_says_what_is_not_as_it_seems():
    page = step_time_table.page(record())
    assert "Scaled down for this machine: decoder.width 2048 -> 256." in page
    assert "Both sides draw their own parameters, so their losses are not compared." in page
    assert "20.0% padding; PyTorch pads each of the same samples, 60.0% padding" in page
    assert "Skipped: surrogate (no time was left)." in page
    assert "- causal, 2 x 4: flash (flash 1 ms)" in page
    assert "10 TFLOP/s" in page and "MFU = " in page and "python benchmarks/step_time.py" in page


def test_without_a_peak_there_is_no_utilisation():
    found = record() | {"peak_flops": None}
    assert row(step_time_table.page(found), "packed", "mmjax")["MFU"] == "-"
    assert len(step_time_chart.panels(found)) == 2


def test_the_image_has_a_bar_for_every_figure():
    root = ElementTree.fromstring(step_time_chart.draw(record()))
    bars = [title.text for title in root.iter(f"{SVG}title")]
    assert len(bars) == 3 * 4 and {"mmjax: 1", "torch eager: 2", "torch.compile: 2"} <= set(bars)
    found = record()
    found["shapes"] = found["shapes"][1:]
    assert step_time_chart.draw(found) is None


def test_json_holds_every_round(tmp_path: pathlib.Path):
    step_time.save(record(), tmp_path / "new")
    written = json.loads((tmp_path / "new" / "step_time.json").read_text())
    assert written["shapes"][0]["workers"]["compile"]["seconds"] == [0.2, 0.1, 0.8]
    assert (
        written["shapes"][0]["scaled"] == {"model.decoder.width": [2048, 256]}
        and written["command"]
        and written["date"]
    )


def test_what_workers_saw_is_noticed():
    found = record() | {"shapes": [], "on_cpu": False, "peak_flops": None}
    seen = worker(0.1, device="a GPU", peak_flops=9e14, versions={"jax": "1"})
    result = {
        "name": "llm_1b",
        "workers": {"mmjax": seen, "eager": worker(0.1, versions={"torch": "2"})},
    }
    step_time.notice(found, result)
    assert (found["device"], found["peak_flops"]) == ("a GPU", 9e14)
    assert found["versions"] == {"jax": "1", "torch": "2"} and found["shapes"] == [result]
    late = {
        "name": "packed",
        "failed": "mmjax: the time was up",
        "workers": {"mmjax": {"error": "the time was up"}},
    }
    step_time.notice(found, late)
    assert (
        found["shapes"] == [result]
        and found["skipped"]["packed"] == "its time was up before anything was timed"
    )


@pytest.mark.parametrize("given", [["--variants", "quick"], ["--rounds", "many"]])
def test_a_wrong_option_ends_with_two(given: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        step_time.arguments(given)
    assert ended.value.code == 2 and capsys.readouterr().err
