"""What benchmarks/gpu.sh runs, skips and stops, and for how long."""

import argparse
import contextlib
import os
import pathlib
import subprocess
import sys

import gpu_parts
import gpu_plan
import pytest
from gpu_plan import Part

ROOT = pathlib.Path(__file__).parents[2]
CHILD = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "MARK"])
print("began", flush=True)
time.sleep(600)
"""


def part(name, program="print('done')", share=1.0, least=0.0, **rest):
    return Part(name, ("-c", program), ("-c", program), share, least, **rest)


def options(tmp_path, seconds=60.0, device="cpu"):
    return argparse.Namespace(seconds=seconds, out=tmp_path, device=device)


def statuses(outcomes):
    return {outcome.name: outcome.status for outcome in outcomes}


def test_the_time_is_shared_among_the_parts_that_are_left():
    first, second, third = part("a", share=1), part("b", share=2), part("c", share=1)
    assert gpu_plan.limit(100, first, [second, third]) == 25
    assert gpu_plan.limit(90, second, [third]) == 60  # what the first one has not used is shared
    assert gpu_plan.limit(10, third, []) == 10


def test_a_part_may_finish_what_it_has_begun_but_not_beyond_the_end():
    assert gpu_plan.stop_after(100, 20) == 30
    assert gpu_plan.stop_after(22, 20) == 22


def test_shares_of_all_parts_add_up_to_the_time():
    parts, left = gpu_plan.parts(torch=True), 540.0
    for number, one in enumerate(parts):
        own = gpu_plan.limit(left, one, parts[number + 1 :])
        assert own >= one.least, f"{one.name} has no time in 540 s"
        left -= own
    assert left == pytest.approx(0)


def test_every_script_of_a_part_is_there():
    for one in gpu_plan.parts(torch=False):
        for command in (one.command, one.trial):
            assert command[0].startswith("-") or (ROOT / command[0]).is_file(), command
    assert "--torch_python" in str(gpu_plan.parts(torch=True)) and "--torch_python" not in str(
        gpu_plan.parts(torch=False)
    )


def test_commands_are_filled_but_for_nothing():
    for one in gpu_plan.parts(torch=True):
        for command in (one.command, one.trial):
            words = gpu_plan.filled(
                command, pathlib.Path("/results"), pathlib.Path("/scratch"), 90.0
            )
            assert not [word for word in words if "{" in word]
    assert gpu_plan.filled(
        ["{out}/x", "{seconds}", "{minutes}"], pathlib.Path("/r"), pathlib.Path("/s"), 90.0
    ) == ["/r/x", "90", "1.50"]


def test_what_is_missing_is_named(tmp_path):
    one = part("a", packages=("json", "grain", "clu"), files=("smollm2",))
    assert (
        gpu_plan.lacking(one, tmp_path, trial=False, has=lambda name: name == "json")
        == "missing: grain, clu"
    )
    assert gpu_plan.lacking(one, tmp_path, trial=False, has=lambda name: True).startswith(
        "not fetched: smollm2 (python -m mmjax.fetch"
    )
    assert gpu_plan.lacking(one, tmp_path, trial=True, has=lambda name: True) == ""
    (tmp_path / "smollm2").mkdir()
    assert gpu_plan.lacking(one, tmp_path, trial=False, has=lambda name: True) == ""


def test_parts_run_fail_and_are_skipped_each_with_its_reason(tmp_path):
    parts = [
        part("good"),
        part("bad", "import sys; print('a | b'); sys.exit(3)"),
        part("absent", packages=("no_such_package",)),
        part("late", least=1e6),
    ]
    outcomes = gpu_parts.run_all(parts, options(tmp_path), tmp_path)
    assert statuses(outcomes) == {
        "good": "ran",
        "bad": "failed",
        "absent": "skipped",
        "late": "skipped",
    }
    text = (tmp_path / "summary.md").read_text()
    assert "| bad | failed | " in text and "exit code 3: a / b |" in text
    assert (
        "missing: no_such_package" in text
        and "no time left" in text
        and "the figures mean nothing" in text
    )
    assert (tmp_path / "good.log").read_text() == "done\n" and not (
        tmp_path / "absent.log"
    ).exists()


def test_a_part_whose_time_is_up_is_stopped_with_what_it_has_started(tmp_path):
    outcome = gpu_parts.run_part(
        part("slow", CHILD.replace("MARK", str(tmp_path))), options(tmp_path), 2.0, 2.0
    )
    assert (
        outcome.status == "stopped"
        and outcome.said == "its time of 2 s was up; it said last: began"
    )
    assert str(tmp_path).encode() not in b"".join(command_lines())


def command_lines():
    """Of all processes; those that end meanwhile are skipped."""
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes()


def test_the_files_that_are_results_are_kept(tmp_path):
    program = "import pathlib; pathlib.Path(r'{scratch}/run').mkdir(); pathlib.Path(r'{scratch}/run/summary.json').write_text('{{}}')"
    one = part("training", program.replace("{{}}", "[]"), keep=("run/summary.json", "run/absent"))
    assert gpu_parts.run_part(one, options(tmp_path), 20.0, 20.0).status == "ran"
    assert (tmp_path / "training_summary.json").read_text() == "[]" and not (
        tmp_path / "training_absent"
    ).exists()


def test_nothing_is_run_on_a_device_that_is_no_gpu(tmp_path):
    parts = [part("device", "print('cpu cpu')"), part("attention")]
    assert statuses(gpu_parts.run_all(parts, options(tmp_path, device="gpu"), tmp_path)) == {
        "device": "ran"
    }
    parts = [part("device", "print('gpu NVIDIA H200')"), part("attention")]
    assert statuses(gpu_parts.run_all(parts, options(tmp_path, device="gpu"), tmp_path)) == {
        "device": "ran",
        "attention": "ran",
    }


def test_without_a_gpu_there_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(gpu_parts, "has_gpu", lambda: False)
    assert gpu_parts.main([]) == 2
    assert (
        capsys.readouterr().err
        == "This machine has no NVIDIA GPU; --device cpu runs a trial with the smallest shapes.\n"
    )


def test_an_unknown_part_is_refused(capsys):
    assert gpu_parts.main(["--device", "cpu", "--parts", "flight"]) == 2
    assert "There is no part 'flight'; there are device, attention" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trial_of_the_script(tmp_path):
    command = [
        "bash",
        str(ROOT / "benchmarks/gpu.sh"),
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
        "--parts",
        "device",
        "profile",
    ]
    environment = os.environ | {"PYTHON": sys.executable, "SECONDS_BUDGET": "300"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert not done.returncode, done.stdout + done.stderr
    assert "| profile | ran | " in (tmp_path / "summary.md").read_text()
    assert "| all |" in (tmp_path / "profile" / "profile.md").read_text()
