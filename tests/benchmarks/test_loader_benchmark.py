"""Image sets, processes, phases and tables of the loader's benchmark."""

import argparse
import json
import subprocess
import sys

import loader
import loader_data
import loader_phases
import loader_table
import loader_wait
import processes
import pytest
from PIL import Image as Pillow

from mmjax.data.text.templates import TEMPLATES
from mmjax.data.text.tokenizer import WordTokenizer

WHEN = ("imports", "planned", "reading")


def test_the_images_are_shared_among_the_sources(tmp_path):
    sources = loader_data.write_sources(tmp_path, 3, "jpeg", (40, 30), 71)
    assert [len(config.open(TEMPLATES["plain"])) for config in sources.values()] == [24, 24, 23]
    assert sum(config.weight for config in sources.values()) == pytest.approx(1)
    files = list(tmp_path.glob("*/*.jpeg"))
    assert len(files) == 71 and {Pillow.open(path).size for path in files} == {(40, 30)}


def test_names_beyond_the_distinct_images_are_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(loader_data, "DISTINCT", 2)
    names = loader_data.write_images(tmp_path / "images", "png", (20, 10), 5)
    numbers = [(tmp_path / "images" / name).stat().st_ino for name in names]
    assert (
        numbers[0] == numbers[2] == numbers[4]
        and numbers[1] == numbers[3]
        and numbers[0] != numbers[1]
    )


def test_rows_of_many_sources_hold_every_image_of_each_once_in_a_pass(tmp_path):
    rows = loader_data.make(loader_data.write_sources(tmp_path, 3, "png", (20, 10), 9), 16)
    found = sorted(name for index in range(9) for name in rows.sample_ids(index))
    assert found == sorted(
        f"source{source}.jsonl:{row}" for source in range(3) for row in (1, 2, 3)
    )
    assert rows[0].images.shape == (1, 16, 16, 3) and rows[0].image_mask.all()


def test_easy_vqa_has_a_tenth_of_the_rows(tmp_path):
    pytest.importorskip("easy_vqa")
    sources = loader_data.with_easy_vqa(loader_data.write_sources(tmp_path, 2, "png", (20, 10), 4))
    whole = sum(config.weight for config in sources.values())
    assert sources["easy_vqa"].weight / whole == pytest.approx(0.1)


def test_a_family_is_a_process_and_all_below_it():
    assert processes.descendants({2: 1, 3: 2, 4: 3, 5: 1, 6: 5}, 2) == {2, 3, 4}


def test_processes_are_found_and_measured():
    child = subprocess.Popen(
        [sys.executable, "-c", "print(sum(range(3 * 10**6)), flush=True); input()"],
        stdin=-1,
        stdout=-1,
        text=True,
    )
    assert child.stdout.readline()
    assert child.pid in processes.family()
    found = processes.memory({child.pid})
    assert 1e6 < found["rss"] < 1e9 and 0 < found.get("pss", 1) <= found["rss"]
    assert processes.cpu_seconds({child.pid}) > 0
    child.communicate("\n")
    assert processes.memory({child.pid})["rss"] == 0 and processes.cpu_seconds({child.pid}) == 0


def test_fields_are_read_behind_any_name():
    assert processes.fields("12 (a) b) c) S 7 12")[:2] == ["S", "7"]
    assert processes.of_rollup("Rss:  12 kB\nPss:   3 kB\nPss_Dirty: 1 kB\n", "pss") == 3 * 1024


def test_phases_are_timed_over_every_image(tmp_path):
    (config,) = loader_data.write_sources(tmp_path, 1, "jpeg", (64, 48), 6).values()
    rows = loader_data.make({"one": config}, 32)
    tokenizer = WordTokenizer.build(config.open(TEMPLATES["plain"]).texts())
    found = loader_phases.by_phase(config, rows.shape, tokenizer, 6, 3)
    assert tuple(found) == loader_phases.PHASES and all(seconds > 0 for seconds in found.values())
    assert loader_phases.whole(rows, 6, 3) > 0


def log(stage, step, input_share, step_share, rate):
    return {
        "stage": stage,
        "step": step,
        "time_share/input": input_share,
        "time_share/step": step_share,
        "steps_per_second": rate,
    }


def test_waiting_is_its_share_of_input_and_step_over_all_windows():
    lines = [
        log("one", 11, 0.1, 0.3, 10.0),  # 10 steps of 0.1 s, a quarter of them input
        {"stage": "one", "step": 15, "held_out/loss": 1.0},
        log("one", 31, 0.0, 1.0, 20.0),  # 20 steps of 0.05 s
        log("two", 5, 0.5, 0.5, 1.0),
    ]
    found = loader_wait.shares(
        lines, {"one": {"input": 3.25}, "two": {"input": 2.0}, "three": {"input": 0.0}}
    )
    assert set(found) == {"one", "two"}
    assert found["one"] == pytest.approx(
        {"input": 0.25 / 30, "step": 1.75 / 30, "share": 0.125, "most": 0.25, "first": 3.0}
    )
    assert found["two"] == pytest.approx(
        {"input": 0.5, "step": 0.5, "share": 0.5, "most": 0.5, "first": 0.0}
    )


def test_tables_say_what_is_met_and_what_grows():
    waits = {"one": {"input": 1e-5, "step": 1e-2, "share": 0.001, "most": 0.02, "first": 1.0}}
    assert loader_table.wait(waits, 0.01)[2].endswith("under 1%: met |")
    assert loader_table.wait(waits, 0.0005)[2].endswith("NOT met |")
    line = {
        "sources": 1,
        "easy_vqa": True,
        "memory": {when: {"rss": 4e8, "pss": 2e8} for when in WHEN},
    }
    more = line | {"sources": 30, "memory": line["memory"] | {"reading": {"rss": 4e8, "pss": 5e8}}}
    assert loader_table.memory([line, more])[2:] == [
        "| 1 JSONL + easy-vqa | 200 | 200 | 200 | 400 | 1.00 |",
        "| 30 JSONL + easy-vqa | 200 | 200 | 500 | 400 | 2.50 |",
    ]
    one = {
        "form": "png",
        "size": (64, 48),
        "workers": 2,
        "images": 300,
        "seconds": 2.0,
        "cpu_seconds": 3.0,
    }
    assert loader_table.rate([one])[2] == "| png, 64x48 | 2 | 150 | 1.50 | 100 |"


def test_memory_is_judged_by_rss_where_the_kernel_says_no_more():
    line = {"sources": 1, "easy_vqa": False, "memory": {when: {"rss": 4e8} for when in WHEN}}
    assert loader_table.memory([line])[2] == "| 1 JSONL | 400 | 400 | 400 | 400 | 1.00 |"


@pytest.mark.parametrize("text", ["640", "0x4", "axb", "4x-1", "4x"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="such as 640x480"):
        loader.size(text)
    assert loader.size("640x480") == (640, 480)


@pytest.mark.slow
def test_the_command_measures_rate_phases_and_memory(tmp_path):
    given = [
        "--parts",
        "rate",
        "phases",
        "memory",
        "--forms",
        "jpeg",
        "--sizes",
        "64x48",
        "--image_size",
        "32",
        "--batch",
        "4",
    ]
    given += [
        "--workers",
        "0",
        "1",
        "--images",
        "8",
        "--sources",
        "1",
        "2",
        "--memory_images",
        "8",
        "--memory_image_size",
        "32",
    ]
    assert loader.main([*given, "--memory_workers", "1", "--out", str(tmp_path / "loader")]) == 0
    record = json.loads((tmp_path / "loader.json").read_text())
    assert [(line["workers"], line["images"]) for line in record["rate"]] == [(0, 8), (1, 8)]
    assert [line["sources"] for line in record["memory"]["lines"]] == [1, 2]
    reading = record["memory"]["lines"][0]["memory"]
    assert reading["reading"]["rss"] > 1.5 * reading["imports"]["rss"], "the worker is not counted"
    assert "Microseconds per image" in (tmp_path / "loader.md").read_text()


@pytest.mark.slow
def test_waiting_is_measured_in_a_real_run():
    pytest.importorskip("easy_vqa")
    found = loader_wait.measure("configs/cos.py", workers=1, steps=3)
    assert set(found) == {"pretrain", "finetune"}
    assert all(
        line["step"] > line["input"] > 0 and 0 < line["share"] < 1 for line in found.values()
    )
