"""Costs from a workdir, of this version and of older ones; everything wrong is one message."""

import json

import pytest

from mmjax.errors import InputError
from mmjax.ledger import costs_of_summary, read
from tests.ledger import runs


def test_a_finished_run(tmp_path):
    found = read(runs.write(tmp_path / "run", runs.grafted()))
    assert (
        found.name == str(tmp_path / "run") and found.device == "H100" and found.devices == (8, 16)
    )
    assert [stage.name for stage in found.stages] == ["translators", "encoder", "finetune"]
    assert found.stages[0].device_seconds == pytest.approx(9.36 * 3600 * 8)
    assert (found.stages[0].samples, found.stages[0].tokens) == (1280, 2_000_000)


def test_a_summary_that_says_nothing_of_devices():
    """Then it was a version whose meshes had all devices of the run."""
    summary = runs.baseline()
    for entry in summary["stages"]:
        del entry["devices"], entry["device_seconds"]
    found = costs_of_summary("old", summary)
    assert found.devices == (16,) and found.total("device_seconds") == pytest.approx(
        34.79 * 3600 * 16
    )
    del summary["hardware"]
    found = costs_of_summary("old", summary)
    assert found.total("device_seconds") is None and found.total("seconds") == pytest.approx(
        34.79 * 3600
    )
    assert found.hardware == "? x unknown devices"


def test_stages_are_in_the_order_of_the_config():
    summary = runs.baseline()
    summary["stages"].reverse()
    assert [
        stage.name for stage in costs_of_summary("run", summary, ["pretrain", "finetune"]).stages
    ] == ["pretrain", "finetune"]


def test_cores_are_part_of_what_a_cpu_is():
    assert (
        costs_of_summary("run", runs.baseline(platform="cpu", device="cpu", cpus=2)).device
        == "cpu of 2 cores"
    )


def test_there_is_no_run(tmp_path):
    with pytest.raises(InputError, match="There is no folder"):
        read(tmp_path / "none")
    with pytest.raises(InputError, match="is not the workdir of a run"):
        read(tmp_path)
    (tmp_path / "config.json").write_text('{"stages": {"pretrain": {}}}')
    with pytest.raises(InputError, match=r"No stage of the run .* is finished"):
        read(tmp_path)


def test_a_run_that_is_not_finished(tmp_path):
    with pytest.raises(InputError, match=r"not finished; its summary\.json lacks more, and_more"):
        read(runs.write(tmp_path / "run", runs.baseline(), "more", "and_more"))
    with pytest.raises(InputError, match="has no stage"):
        costs_of_summary("run", {"stages": []})


@pytest.mark.parametrize("value", [None, "12", float("nan"), -1.0, True])
@pytest.mark.parametrize("key", ["seconds", "flops"])
def test_a_number_that_is_none(key, value):
    summary = runs.baseline()
    summary["stages"][1][key] = value
    with pytest.raises(
        InputError,
        match=rf"run: '{key}' of stage 'finetune' in its summary.json must be a number, not",
    ):
        costs_of_summary("run", summary)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        json.dumps({"stages": [{}]}),
        json.dumps({"stages": [3]}),
        json.dumps({"hardware": 3}),
    ],
)
def test_a_damaged_summary(tmp_path, content):
    workdir = runs.write(tmp_path / "run", runs.baseline())
    (workdir / "summary.json").write_text(content)
    with pytest.raises(InputError, match=r"summary\.json"):
        read(workdir)
