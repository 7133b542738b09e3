"""The loop on a small model: what an interruption changes (nothing), what it saves, and what it says."""

import contextlib
import dataclasses
import io
import itertools
import json
import logging
import os
import pathlib
import re
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest
from rich.console import Console

from mmjax.base.signals import StopSignal
from mmjax.errors import InputError, NonFiniteError, Preempted
from mmjax.recipe.recipe import OptimizerConfig
from mmjax.training import loop as training_loop
from mmjax.training.checkpoint import describe
from tests.training import toy


@pytest.fixture(scope="module", autouse=True)
def shared_steps():
    """All runs here are of one model, and those of one stage share their compiled steps: tracing them takes most of the time of so short a
    run. Only the first run is told of the compilation.
    """
    make_train, make_evaluation = training_loop.make_train_step, training_loop.make_evaluation_step
    train_steps, evaluation_steps = {}, []

    def shared_train(model_def, stage, *arguments, **options):
        key = repr(dataclasses.replace(stage, data=None))  # what it reads is nothing to a step
        if key not in train_steps:
            train_steps[key] = make_train(model_def, stage, *arguments, **options)
        return train_steps[key]

    def shared_evaluation(*arguments, **options):
        if not evaluation_steps:
            evaluation_steps.append(make_evaluation(*arguments, **options))
        return evaluation_steps[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_loop, "make_train_step", shared_train)
        patch.setattr(training_loop, "make_evaluation_step", shared_evaluation)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toy.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nothing interrupts: its folder, its result, and what it printed."""
    folder, screen = tmp_path_factory.mktemp("whole"), io.StringIO()
    result = toy.train(toy.small_recipe(data), folder, console=Console(file=screen))
    return folder, result, screen.getvalue()


@pytest.fixture
def finished(whole, tmp_path):
    """A copy of the folder of that run."""
    return shutil.copytree(whole[0], tmp_path / "finished")


def record(workdir: pathlib.Path, step: int = toy.STEPS) -> dict:
    return json.loads((workdir / "checkpoints" / str(step) / "record" / "record.json").read_text())[
        "content"
    ]


def assert_same_end(workdir: pathlib.Path, result, whole) -> None:
    """Bit for bit: parameters, optimizer, step, rng, data row; and metrics line for line."""
    folder, expected, _ = whole
    found, wanted = record(workdir), record(folder)
    assert found["arrays"] == wanted["arrays"]  # with a digest of each
    assert {"step", "rng", "optimizer/count", "optimizer/nu/decoder/embedding"} < found[
        "arrays"
    ].keys()
    for name in ("position", "window", "skipped", "config_digest"):
        assert found["metadata"][name] == wanted["metadata"][name], name
    assert found["row"] == wanted["row"] == 2 * toy.STEPS
    assert toy.metric_lines(workdir) == toy.metric_lines(folder)
    for path, value in result.params.items():
        np.testing.assert_array_equal(value, expected.params[path], err_msg=path)
    assert (result.steps, result.samples, result.tokens, result.flops) == (
        expected.steps,
        expected.samples,
        expected.tokens,
        expected.flops,
    )
    assert result.held_out_loss == expected.held_out_loss and result.finished


def test_a_run_reports_what_it_did(whole):
    folder, result, screen = whole
    assert (result.steps, result.samples, result.finished) == (toy.STEPS, 2 * toy.STEPS, True)
    assert 0 < result.tokens <= 2 * toy.STEPS * (12 + 2 * 4)
    assert result.flops > 0 and set(result.seconds) == {
        "compile",
        "input",
        "step",
        "evaluation",
        "save",
        "other",
    }
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["4", "6"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], "loss" in line, "holdout/loss" in line) for line in lines] == [
        (3, False, True),
        (4, True, False),
        (6, True, False),
        (6, False, True),
    ]
    assert {"token_accuracy", "gradient_norm", "gradient_norm/decoder", "learning_rate"} <= lines[
        1
    ].keys()
    assert {"steps_per_second", "images_per_second", "tokens_per_second", "mfu"} <= lines[1].keys()
    assert sum(
        value for name, value in lines[1].items() if name.startswith("time_share/")
    ) == pytest.approx(1.0)
    assert result.held_out_loss == lines[-1]["holdout/loss"]
    assert "first batch in" in screen and "compiled in" in screen and "compiled anew" not in screen
    assert screen.count("MFU = (forward + backward FLOPs") == 1


def test_every_parameter_is_listed_as_the_stage_has_it(whole):
    folder, result, _ = whole
    trained, frozen = (folder / "parameters.txt").read_text().split("Frozen")
    assert trained.startswith("Trained\n")
    for path, value in result.params.items():
        table = frozen if path.startswith("vision/") else trained
        (line,) = (line for line in table.splitlines() if f" {path} " in line)
        _, _, shape, dtype, size, _, _ = (cell.strip() for cell in line.split("|"))
        assert (shape, dtype) == (str(value.shape), str(value.dtype))
        assert size == f"{value.size:,}"
    assert "Total: " in trained and "Total: " in frozen


def test_the_digests_are_of_the_arrays(whole):
    folder, result, _ = whole
    arrays = record(folder)["arrays"]
    for path, value in result.params.items():
        assert describe(value) in (arrays.get(f"trainable/{path}"), arrays.get(f"frozen/{path}"))


@pytest.mark.parametrize("first", [1, 3, 5])
def test_stopping_and_going_on_changes_no_bit(data, whole, tmp_path, first):
    recipe = toy.small_recipe(data)
    begun = toy.train(recipe, tmp_path, stop_after=first)
    assert (begun.steps, begun.finished, begun.held_out_loss) == (first, False, None)
    before = record(tmp_path, first)["metadata"]["seconds"]  # the save itself is not among them
    ended = toy.train(recipe, tmp_path)
    assert_same_end(tmp_path, ended, whole)
    assert sum(ended.seconds.values()) > sum(before.values()) > 0  # the clock goes on, too


def stop_when_read(part: str, row: int):
    """A stop that is requested when a row of the training or held-out data is read."""
    stop = toy.NoSignal()

    def edit(rows, held_out):
        watched = {"train": rows, "holdout": held_out}[part]
        load = watched.load

        def noticing(index):
            stop.requested = stop.requested or index >= row
            return load(index)

        watched.load = noticing
        return rows, held_out

    return stop, edit


@pytest.mark.parametrize("part, row", [("train", 5), ("train", 0), ("holdout", 2)])
def test_a_stop_saves_and_the_next_run_goes_on(data, whole, tmp_path, part, row):
    recipe = toy.small_recipe(data)
    stop, edit = stop_when_read(part, row)
    with pytest.raises(Preempted, match="the state is saved"):
        toy.train(recipe, tmp_path, stop=stop, edit_rows=edit)
    if part == "holdout":
        assert not (tmp_path / "metrics.jsonl").exists(), "the evaluation was not cut short"
    assert_same_end(tmp_path, toy.train(recipe, tmp_path), whole)


def test_a_stop_before_the_first_step_saves_the_start(data, whole, tmp_path):
    recipe = toy.small_recipe(data)
    with pytest.raises(Preempted, match="step 0"):
        toy.train(recipe, tmp_path, stop=toy.NoSignal(requested=True))
    assert_same_end(tmp_path, toy.train(recipe, tmp_path), whole)


@pytest.mark.parametrize("part, row", [("train", 8), ("train", 0), ("holdout", 2)])
def test_a_signal_ends_the_wait_for_data(data, whole, tmp_path, part, row):
    """The wait would be without end."""
    released = threading.Event()
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))

    def edit(rows, held_out):
        watched = {"train": rows, "holdout": held_out}[part]
        load = watched.load

        def blocking(index):
            if index == row:
                timer.start()
            if index >= row:
                released.wait(60)
            return load(index)

        watched.load = blocking
        return rows, held_out

    recipe = toy.small_recipe(data)
    try:
        with StopSignal() as stop, pytest.raises(Preempted, match="the state is saved"):
            toy.train(recipe, tmp_path, stop=stop, edit_rows=edit)
    finally:
        released.set()
    assert_same_end(tmp_path, toy.train(recipe, tmp_path), whole)


def refuse_folders(monkeypatch, step: str, times: int) -> None:
    """The disk has no room for the checkpoint of a step, so many times."""
    make, calls = os.mkdir, itertools.count(1)

    def making(path, *arguments, **options):
        if pathlib.Path(path).name.startswith(f"{step}.orbax") and next(calls) <= times:
            raise OSError(28, "No space left on device")
        make(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", making)


@pytest.mark.parametrize("step", ["2", "6"])
def test_a_save_that_fails_once_costs_nothing(data, whole, tmp_path, monkeypatch, step, caplog):
    refuse_folders(monkeypatch, step, 1)
    with caplog.at_level(logging.ERROR):
        result = toy.train(toy.small_recipe(data), tmp_path)
    assert_same_end(tmp_path, result, whole)
    (message,) = (record.getMessage() for record in caplog.records)
    assert "was not saved: No space left on device" in message


def test_a_last_save_that_fails_twice_is_an_error_and_the_one_before_is_good(
    data, whole, tmp_path, monkeypatch
):
    recipe = toy.small_recipe(data)
    with monkeypatch.context() as patch:
        refuse_folders(patch, "6", 3)  # once after the step, and twice at the end
        with pytest.raises(InputError, match=r"after step 6 .* cannot be saved .* No space left"):
            toy.train(recipe, tmp_path)
    assert_same_end(tmp_path, toy.train(recipe, tmp_path), whole)


def crash_when_read(row: int):
    def edit(rows, held_out):
        load = rows.load

        def failing(index):
            if index >= row:
                raise ConnectionError("the disk is gone")
            return load(index)

        rows.load = failing
        return rows, held_out

    return edit


def test_a_crash_loses_the_steps_since_the_last_save_and_no_line_twice(data, whole, tmp_path):
    recipe = toy.small_recipe(data)  # saves at 2 and 4; rows from 10 on belong to step 6
    with pytest.raises(ConnectionError):
        toy.train(recipe, tmp_path, edit_rows=crash_when_read(10))
    assert [line["step"] for line in toy.metric_lines(tmp_path)] == [3, 4]
    assert_same_end(tmp_path, toy.train(recipe, tmp_path), whole)


def test_an_evaluation_cut_short_and_then_a_crash_leave_no_line_twice(data, whole, tmp_path):
    recipe = toy.small_recipe(data)
    rare = dataclasses.replace(recipe, checkpoint=dataclasses.replace(recipe.checkpoint, every=6))
    stop, edit = stop_when_read("holdout", 0)
    with pytest.raises(Preempted, match="step 3"):
        toy.train(rare, tmp_path, stop=stop, edit_rows=edit)
    with pytest.raises(
        ConnectionError
    ):  # after the held-out loss of step 3 was measured and logged again
        toy.train(rare, tmp_path, edit_rows=crash_when_read(8))
    assert_same_end(tmp_path, toy.train(rare, tmp_path), whole)


def test_a_finished_stage_is_not_repeated(data, whole, finished, monkeypatch):
    monkeypatch.setattr(toy, "first_params", lambda *_: pytest.fail("it was begun again"))
    monkeypatch.setattr(training_loop, "batches", lambda *_: pytest.fail("data was read"))
    assert_same_end(finished, toy.train(toy.small_recipe(data), finished), whole)


def test_a_damaged_newest_step_costs_its_steps_only(data, whole, finished):
    (finished / "checkpoints" / "6" / "record" / "record.json").write_text("")
    assert_same_end(finished, toy.train(toy.small_recipe(data), finished), whole)
    assert (finished / "checkpoints" / "6.damaged").is_dir()


def test_a_loss_that_is_not_finite_ends_the_stage_with_the_samples_named(
    data, tmp_path, monkeypatch
):
    make, rows = training_loop.make_train_step, []

    def spoiling(*arguments, **options):
        """A step whose second call finds a parameter that is not finite."""
        step, calls = make(*arguments, **options), itertools.count(1)

        def spoilt(state, batch):
            if next(calls) == 2:
                path, value = min(state.trainable.items())
                bad = jax.device_put(np.full(value.shape, np.nan, np.float32), value.sharding)
                state = dataclasses.replace(state, trainable=state.trainable | {path: bad})
            return step(state, batch)

        return spoilt

    monkeypatch.setattr(training_loop, "make_train_step", spoiling)

    def remember(train_rows, held_out):
        rows.append(train_rows)
        return train_rows, held_out

    with pytest.raises(NonFiniteError, match=r"step 2 of stage 'toy'"):
        toy.train(toy.small_recipe(data, every=1), tmp_path, edit_rows=remember)
    dump = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (dump["step"], dump["stage"]) == (2, "toy") and dump["what"] in ("loss", "gradient")
    assert dump["samples"] == [rows[0].sample_ids(index) for index in (2, 3)] and all(
        dump["samples"]
    )
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "1"
    ]  # nothing of the bad step was saved


def corrupt(data: pathlib.Path, folder: pathlib.Path, *numbers: int) -> pathlib.Path:
    """A copy of the data in which some images are none."""
    shutil.copytree(data, folder)
    for number in numbers:
        (folder / f"{number}.png").write_bytes(b"no image")
    return folder


def with_budget(recipe, budget: float, **changes):
    (stage,) = recipe.stages.values()
    stage = dataclasses.replace(
        stage, data=dataclasses.replace(stage.data, skip_budget=budget), **changes
    )
    return dataclasses.replace(recipe, stages={"toy": stage})


def test_steps_that_teach_nothing_end_the_stage_before_a_hundred_samples_were_seen(data, tmp_path):
    recipe = toy.small_recipe(corrupt(data, tmp_path / "data", *range(15)), every=1)
    for _ in range(2):  # again from the checkpoint of the first step
        with pytest.raises(
            InputError, match=r"2 of 2 steps had no target.*corrupt image: "
        ) as error:
            toy.train(recipe, tmp_path / "run")
        assert re.search(r"\n  corrupt image: captions\.jsonl:\d+: .*\.png", str(error.value))
    assert not (tmp_path / "run" / "checkpoints" / str(toy.STEPS)).exists()


def test_a_stage_in_which_no_step_taught_anything_never_ends_well(data, tmp_path):
    recipe = toy.small_recipe(corrupt(data, tmp_path / "data", *range(15)))
    for _ in range(2):
        with pytest.raises(InputError, match="6 of 6 steps had no target"):
            toy.train(with_budget(recipe, 1.0), tmp_path / "run")
    lines = toy.metric_lines(tmp_path / "run")
    assert lines and not any("loss" in line for line in lines if "skipped/corrupt image" in line)


def test_the_budget_is_judged_at_the_end_of_a_stage_too(data, tmp_path):
    """One sample of fifteen is more than one of a hundred, and fewer than a hundred are seen."""
    folder = corrupt(data, tmp_path / "data", 0)
    recipe = toy.small_recipe(folder)
    with pytest.raises(
        InputError, match=r"Data: \d+ of \d\d samples cannot be used \(corrupt image"
    ):
        toy.train(recipe, tmp_path / "run")
    result = toy.train(with_budget(recipe, 0.5), tmp_path / "other")
    assert result.finished and result.skipped["corrupt image"] > 0


def test_a_held_out_loss_of_nothing_is_refused(data, tmp_path):
    recipe = toy.small_recipe(corrupt(data, tmp_path / "data", *range(15, 20)))
    with pytest.raises(InputError, match=r"(?s)held-out loss cannot be measured.*corrupt image: "):
        toy.train(with_budget(recipe, 1.0), tmp_path / "run")


def test_missing_images_are_counted_before_the_first_step(data, tmp_path):
    folder = corrupt(data, tmp_path / "data")
    (folder / "3.png").unlink()
    recipe = with_budget(toy.small_recipe(folder), 0.5)
    result = toy.train(recipe, tmp_path / "run", stop_after=1)
    assert result.skipped == {"missing image": 1}
    with pytest.raises(InputError, match=r"1 of 15 samples cannot be used \(missing image: 1\)"):
        toy.train(with_budget(recipe, 0.01), tmp_path / "none")
    assert not (tmp_path / "none" / "checkpoints").exists()


@pytest.mark.parametrize(
    "one_at_a_time, later",
    [
        (
            False,
            (
                "step",
                "step",
                "look at 2",
                "step",
                "look at 3",
                "step",
                "look at 4",
                "step",
                "look at 5",
            ),
        ),
        (
            True,
            (
                "step",
                "look at 2",
                "step",
                "look at 3",
                "step",
                "look at 4",
                "step",
                "look at 5",
                "step",
            ),
        ),
    ],
)
def test_an_accelerator_is_not_waited_for_before_it_has_the_next_step_and_a_cpu_is(
    data, tmp_path, monkeypatch, one_at_a_time, later
):
    assert training_loop.one_at_a_time() == (jax.default_backend() == "cpu")
    monkeypatch.setattr(training_loop, "one_at_a_time", lambda: one_at_a_time)
    events = []
    make, check = training_loop.make_train_step, training_loop.check_finite

    def recording(*arguments, **options):
        step = make(*arguments, **options)

        def noting(*arguments):
            events.append("step")
            return step(*arguments)

        return noting

    def checking(found, stage, rows, first, dump):
        events.append(f"look at {first // stage.batch_size + 1}")
        check(found, stage, rows, first, dump)

    monkeypatch.setattr(training_loop, "make_train_step", recording)
    monkeypatch.setattr(training_loop, "check_finite", checking)
    recipe = toy.small_recipe(data, every=100)
    quiet = dataclasses.replace(
        recipe, logging=dataclasses.replace(recipe.logging, every=100, evaluate_every=0)
    )
    toy.train(quiet, tmp_path)
    assert events == [
        *("step", "look at 1"),  # the compilation is timed
        *later,
        "look at 6",
    ]


@pytest.mark.parametrize("done", [False, True])
def test_input_is_waited_for_only_where_no_step_is_under_way(data, tmp_path, monkeypatch, done):
    monkeypatch.setattr(training_loop, "is_done", lambda metrics: done)
    recipe = toy.small_recipe(data, every=100)
    quiet = dataclasses.replace(
        recipe, logging=dataclasses.replace(recipe.logging, every=1, evaluate_every=0)
    )
    seconds = []
    take = training_loop.batches

    @contextlib.contextmanager
    def slow(*arguments):
        with take(*arguments) as data:
            yield (time.sleep(0.1) or found for found in data)

    monkeypatch.setattr(training_loop, "batches", slow)
    monkeypatch.setattr(
        training_loop._Loop,
        "_log_if_due",
        lambda loop: seconds.append(loop.chrono.seconds["input"]),
    )
    toy.train(quiet, tmp_path)
    # The first step is waited for, so that the device waits for the second batch.
    later = seconds[-1] - seconds[1]
    assert later > 0.1 * (len(seconds) - 2) if done else later < 0.1


def test_another_recipe_is_refused(data, finished):
    with pytest.raises(InputError, match="another recipe"):
        toy.train(toy.small_recipe(data, optimizer=OptimizerConfig(2e-2)), finished)


def test_a_second_compilation_is_noticed(data, tmp_path, monkeypatch):
    """Of which the step tells the loop: test_step.py shows when."""
    make = training_loop.make_train_step

    def telling(*arguments, on_trace):
        step, calls = make(*arguments, on_trace=on_trace), itertools.count(1)

        def told(state, batch):
            if next(calls) in (1, 3):
                on_trace()
            return step(state, batch)

        return told

    monkeypatch.setattr(training_loop, "make_train_step", telling)
    screen = io.StringIO()
    recipe = toy.small_recipe(data)
    toy.train(recipe, tmp_path, console=Console(file=screen), stop_after=3)
    assert (
        screen.getvalue().count("compiled anew") == 1
        and "step 3 was compiled anew (program 2)" in screen.getvalue()
    )


def test_the_stage_key_is_part_of_the_state(whole):
    folder, _, _ = whole
    assert record(folder)["arrays"]["rng"] == describe(jax.random.key_data(jax.random.key(2)))
