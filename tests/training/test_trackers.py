"""Where metrics go, and that an interruption leaves no trace in them."""

import dataclasses
import json
import logging
import struct
import sys
import types

import pytest
from tensorboardX.proto import event_pb2

from mmjax.errors import InputError
from mmjax.recipe.recipe import LoggingConfig, Recipe
from mmjax.training.logging import JsonLines, TensorBoard, Trackers, WeightsAndBiases, make_trackers

RECIPE = Recipe("cos", "small", {})


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def places(path) -> list[tuple]:
    return [(line["stage"], line["step"], "holdout/loss" in line) for line in read(path)]


@pytest.fixture
def lines(tmp_path):
    """Two stages; the second has trained 4 steps and measured the held-out loss twice."""
    tracker = JsonLines(tmp_path / "metrics.jsonl")
    for stage, step, name in [
        ("one", 9, "loss"),
        ("two", 1, "loss"),
        ("two", 2, "loss"),
        ("two", 2, "holdout/loss"),
        ("two", 4, "loss"),
        ("two", 4, "holdout/loss"),
    ]:
        tracker.log(stage, step, {name: 0.1})
    return tracker, tmp_path / "metrics.jsonl"


def test_a_line_holds_what_was_logged(tmp_path):
    JsonLines(tmp_path / "m").log(
        "one", 3, {"loss": 0.1 + 0.2, "mfu": float("nan"), "norm": float("inf")}
    )
    (line,) = read(tmp_path / "m")
    assert line.pop("time") > 0
    assert line == {
        "stage": "one",
        "step": 3,
        "loss": 0.1 + 0.2,
        "mfu": None,
        "norm": None,
    }  # JSON has no NaN


@pytest.mark.parametrize(
    "step, evaluated, kept",
    [
        (4, True, 6),
        (4, False, 5),  # its held-out loss will be measured again
        (3, True, 4),
        (2, False, 3),
        (0, False, 1),
    ],
)
def test_rewinding_forgets_what_comes_again(lines, step, evaluated, kept):
    tracker, path = lines
    before = places(path)
    tracker.rewind("two", step, evaluated=evaluated)
    assert places(path) == before[:kept]


def test_rewinding_a_stage_leaves_the_others(lines):
    tracker, path = lines
    tracker.rewind("one", 0, evaluated=False)
    assert {place[0] for place in places(path)} == {"two"} and len(places(path)) == 5


@pytest.mark.parametrize(
    "end", ['{"stage": "two", "st', '{"stage": "two", "step": 4, "loss": 1.0}']
)
def test_a_line_that_a_kill_cut_off_does_not_swallow_the_next(lines, end):
    tracker, path = lines
    with path.open("a") as file:
        file.write(end)  # no newline
    tracker.rewind("two", 4, evaluated=True)
    tracker.log("two", 5, {"loss": 1.0})
    assert places(path)[-1] == ("two", 5, False)


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"{", b"7", b"null", b"[1]", b'"step"', b"{}", b"\xff", b"[" * 9999),
        *(b'{"stage": "two"}', b'{"stage": "two", "step": "4"}', b'{"stage": "two", "step": null}'),
    ],
)
def test_a_broken_line_anywhere_is_dropped_with_a_note(lines, line, caplog):
    tracker, path = lines
    before = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*before[:2], line + b"\n", *before[2:]]))
    with caplog.at_level(logging.ERROR):
        tracker.rewind("two", 4, evaluated=True)
    assert path.read_bytes() == b"".join(before)
    (note,) = (record.getMessage() for record in caplog.records)
    assert str(path) in note and "1 lines that cannot be read are dropped" in note


def test_nothing_is_rewound_where_nothing_was_logged(tmp_path):
    JsonLines(tmp_path / "m").rewind("one", 0, evaluated=False)
    assert not (tmp_path / "m").exists()


def test_tensorboard_files_hold_the_scalars(tmp_path):
    tracker = TensorBoard(tmp_path)
    tracker.rewind("one", 0, evaluated=False)
    tracker.log("one", 3, {"loss": 0.5})
    tracker.log("two", 4, {"loss": 0.25})
    tracker.close()
    for stage, step, value in (("one", 3, 0.5), ("two", 4, 0.25)):
        (path,) = (tmp_path / stage).iterdir()
        scalars = [
            (event.step, item.tag, item.simple_value)
            for event in events(path.read_bytes())
            for item in event.summary.value
        ]
        assert scalars == [(step, "loss", value)]


def events(content: bytes):
    """The records of an event file: length, checksum, message, checksum."""
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield event_pb2.Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def test_wandb_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    recipe = dataclasses.replace(RECIPE, logging=LoggingConfig(trackers=("wandb",)))
    with pytest.raises(InputError, match=r"pip install 'mmjax\[wandb\]'"):
        make_trackers(recipe, tmp_path)


def test_wandb_receives_stages_as_prefixes(tmp_path, monkeypatch):
    logged, started = [], {}

    class Run:
        log = staticmethod(logged.append)
        finish = staticmethod(lambda: logged.append("finished"))

    monkeypatch.setitem(
        sys.modules,
        "wandb",
        types.SimpleNamespace(init=lambda **settings: started.update(settings) or Run()),
    )
    tracker = WeightsAndBiases(RECIPE, tmp_path)
    tracker.rewind("one", 0, evaluated=False)
    tracker.log("one", 3, {"loss": 0.5})
    tracker.close()
    assert started["name"] == "cos-small" and started["resume"] == "allow"
    identity = started["id"]
    WeightsAndBiases(RECIPE, tmp_path)
    assert started["id"] == identity
    (tmp_path / "cos").mkdir()
    WeightsAndBiases(RECIPE, tmp_path / "cos")
    assert started["id"] != identity
    assert logged == [{"one/loss": 0.5, "one/step": 3}, "finished"]


def test_an_unknown_tracker_is_refused(tmp_path):
    recipe = dataclasses.replace(RECIPE, logging=LoggingConfig(trackers=("jsonlines",)))
    with pytest.raises(InputError, match="jsonlines"):
        make_trackers(recipe, tmp_path)


def test_several_trackers_are_one(tmp_path):
    both = Trackers([JsonLines(tmp_path / "a"), JsonLines(tmp_path / "b")])
    both.log("one", 1, {"loss": 1.0})
    both.log("one", 2, {"loss": 1.0})
    both.rewind("one", 1, evaluated=True)
    both.close()
    assert places(tmp_path / "a") == places(tmp_path / "b") == [("one", 1, False)]


def test_the_recipe_names_the_trackers(tmp_path):
    tracker = make_trackers(RECIPE, tmp_path)
    tracker.log("one", 1, {"loss": 1.0})
    tracker.close()
    assert (tmp_path / "metrics.jsonl").exists() and list(
        (tmp_path / "tensorboard" / "one").iterdir()
    )
