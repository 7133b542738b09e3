"""Ratios, what must be reached, tables, JSON and image of the attention benchmark, from figures that are made up."""

import json
import xml.etree.ElementTree as ElementTree

import attention
import attention_chart
import attention_table
import pytest
from attention_cases import Case, gpu_cases
from attention_timing import quartiles

CASES = {case.name: case for case in gpu_cases()}
SVG = "{http://www.w3.org/2000/svg}"
OURS = ["mosaic_gpu", "mosaic_gpu_fused"]


def seconds(case: Case, direction: str, teraflops: float, rounds: int = 7) -> dict:
    """Rounds around so many TFLOP/s, of which that is the median."""
    middle = case.flops(direction) / teraflops / 1e12
    return {"seconds": [middle * (1 + 0.01 * (number - rounds // 2)) for number in range(rounds)]}


def record() -> dict:
    case, wide = CASES["decoder-4096"], CASES["packed-8192"]
    forward = {
        "mosaic_gpu": seconds(case, "forward", 520),
        "cudnn": seconds(case, "forward", 650),
        "xla": {"error": "RuntimeError: a|b"},
    }
    backward = {
        "mosaic_gpu": seconds(case, "backward", 300),
        "cudnn": seconds(case, "backward", 450),
        "xla": {"error": "skipped"},
    }
    dense = {
        "mosaic_gpu": seconds(wide, "backward", 360),
        "cudnn": seconds(wide, "backward", 100),
        "torch_flex": seconds(wide, "backward", 200),
    }
    dense["cudnn"]["remark"] = "dense bias"
    return {
        "date": "2026-01-01",
        "device": "a GPU",
        "command": "python benchmarks/attention.py",
        "versions": {"jax": "0"},
        "ours": OURS,
        "directions": ["forward", "backward"],
        "ceilings": {"flops": 395e12, "bandwidth": 4.3e12},
        "gate": {
            "mosaic_gpu": {"passed": True, "reason": None},
            "mosaic_gpu_fused": {"passed": False, "reason": "dq is off"},
        },
        "cases": [
            {"case": case, "directions": {"forward": forward, "backward": backward}},
            {"case": wide, "directions": {"forward": {}, "backward": dense}},
        ],
    }


def row(text: str, name: str, part: int) -> list[str]:
    """Cells of the part-th line of an implementation."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in lines[part].strip("|").split("|")]


def test_a_line_has_rate_ratio_bound_and_verdict():
    name, _, rate, ratio, bound, measured, must, _ = row(attention.page(record()), "mosaic_gpu", 0)
    assert (name, rate, ratio, bound, measured, must) == (
        "mosaic_gpu",
        "520",
        "0.80",
        "66%",
        "132%",
        "500 TFLOP/s: met",
    )


def test_a_must_that_is_missed_is_said():
    assert row(attention.page(record()), "mosaic_gpu", 1)[6] == "380 TFLOP/s: NOT met"


def test_the_dense_opponents_are_those_without_block_masks():
    assert row(attention.page(record()), "mosaic_gpu", 2)[6] == "3 x the dense ones: 3.6, met"
    assert row(attention.page(record()), "mosaic_gpu", 2)[3] == "1.80", (
        "the best opponent of all is another"
    )


def test_opponents_have_nothing_to_reach_and_the_best_says_so():
    cells = row(attention.page(record()), "cudnn", 0)
    assert (cells[3], cells[6]) == ("1.00 (itself)", "")
    assert row(attention.page(record()), "cudnn", 2)[7] == "dense bias"


def test_a_failure_is_a_line():
    assert row(attention.page(record()), "xla", 0) == ["xla", *["-"] * 6, "RuntimeError: a/b"]


def test_ratios_are_taken_round_by_round():
    results = {"ours": {"seconds": [1.0, 2.0, 4.0]}, "theirs": {"seconds": [2.0, 4.0, 8.0]}}
    assert attention_table.ratio(results, "ours", "theirs") == 2.0
    results["theirs"]["seconds"] = [4.0, 2.0, 6.0]  # the ratio of the medians would be 2
    assert attention_table.ratio(results, "ours", "theirs") == 1.5
    assert attention_table.ratio(results, "ours", None) is None


def test_gate_and_wrong_results_are_failures():
    found = record()
    assert attention.failures(found) == ["mosaic_gpu_fused: dq is off"]
    found["cases"][0]["directions"]["forward"]["mosaic_gpu"] = {
        "error": "ArithmeticError: dv is off"
    }
    found["cases"][0]["directions"]["forward"]["cudnn"] = {"error": "ArithmeticError: dv is off"}
    assert len(attention.failures(found)) == 2, "what an opponent computes is not ours to mend"
    assert "FAILED. dq is off" in attention.page(found)


def test_json_holds_every_round_and_the_shape():
    written = json.loads(attention.as_json(record()))
    entry = written["cases"][0]
    assert (
        entry["case"]["name"] == "decoder-4096"
        and entry["case"]["kv_heads"] == 8
        and "segments" not in entry["case"]
    )
    assert len(entry["directions"]["forward"]["mosaic_gpu"]["seconds"]) == 7
    assert entry["case"]["flops"]["backward"] == CASES["decoder-4096"].flops("backward")
    assert (
        written["ceilings"]["flops"] == 395e12
        and written["command"]
        and written["date"]
        and written["versions"]
    )


def test_the_image_has_a_bar_for_every_figure_and_a_line_for_every_bound():
    root = ElementTree.fromstring(attention_chart.draw(record()))
    bars = [title.text for title in root.iter(f"{SVG}title")]
    assert len(bars) == 7 and "mosaic_gpu: 520" in bars
    bounds = [line for line in root.iter(f"{SVG}line") if line.get("stroke-width") == "2"]
    assert len(bounds) == 4
    heights = {
        bar.findtext(f"{SVG}title"): float(bar.get("height")) for bar in root.iter(f"{SVG}rect")
    }
    assert heights["mosaic_gpu: 520"] / heights["cudnn: 650"] == pytest.approx(0.8, abs=0.01)


def test_memory_is_linear_or_is_not():
    memory = {"chunked": {"4096": 10, "16384": 41}, "dense": {"4096": 10, "16384": 160}}
    chunked, dense = attention_table.memory_lines(memory)[2:]
    assert (
        "4.1 times over 4 times the length: linear" in chunked
        and "16.0 times over 4 times the length: not linear" in dense
    )
    found = record() | {"memory": memory}
    assert "not linear" in attention.page(found)
    assert attention_chart.panels(found)[-1].logarithmic
    ElementTree.fromstring(attention_chart.draw(found))


def test_made_up_rounds_have_the_median_that_they_should():
    assert (
        quartiles(seconds(CASES["vit-257"], "forward", 100)["seconds"])[1]
        == CASES["vit-257"].flops("forward") / 100e12
    )
