"""Batches: the same whatever reads them, from any row on."""

import contextlib
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import fields, replace
from itertools import islice

import numpy as np
import pytest
from PIL import Image as Pillow

from mmjax.data.loader import batches
from mmjax.data.packing.rows import Rows, make_rows
from mmjax.data.sources.jsonl import JsonlSource
from mmjax.data.text.tokenizer import WordTokenizer
from mmjax.errors import InputError
from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.linear import LinearConfig
from mmjax.recipe.recipe import DataConfig
from mmjax.typing import NO_TARGET, Batch

MODEL = VLMConfig(
    ViTConfig(8, 4, 8, 1, 1, 8), LinearConfig("linear", (1,)), DecoderConfig(600, 8, 1, 1, 1, 8, 8)
)
IMAGES = 12


@pytest.fixture(scope="module")
def tokenizer():
    return WordTokenizer.build(f"what is {number}? it is {number}" for number in range(30))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    """Two sources; one of the images is corrupt, and the last of them are held out."""
    folder = tmp_path_factory.mktemp("data")
    records = []
    for number in range(IMAGES):
        Pillow.fromarray(np.random.default_rng(number).integers(0, 256, (9, 8, 3), np.uint8)).save(
            folder / f"{number}.png"
        )
        questions = [
            [f"what is {number + place}?", f" it is {number}"] for place in range(number % 4 + 1)
        ]
        records.append({"image": f"{number}.png", "questions": questions})
    (folder / "3.png").write_bytes(b"not an image")
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, records)))
    (folder / "texts.jsonl").write_text(
        "\n".join(json.dumps({"text": f"it is {number}"}) for number in range(20))
    )
    sources = {
        name: JsonlSource("jsonl", str(folder / f"{name}.jsonl"), str(folder), weight)
        for name, weight in [("asked", 2.0), ("texts", 1.0)]
    }
    return DataConfig(
        sources, text_length=24, images_per_row=2, flip=True, holdout=2, skip_budget=1.0
    )


def same(one: Batch, other: Batch) -> bool:
    return all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        for field in fields(Batch)
    )


def take(
    rows, count, *, batch_size=4, first_row=0, workers=0, stop_row=None
) -> list[tuple[Batch, int]]:
    with batches(rows, batch_size, first_row, workers, stop_row) as iterator:
        return list(islice(iterator, count))


def test_batches_are_the_rows_in_order(data, tokenizer):
    rows = make_rows(data, MODEL, tokenizer, 0)
    for number, (batch, first_row) in enumerate(take(rows, 5, first_row=7)):
        assert first_row == 7 + 4 * number
        for place in range(4):
            row = rows.load(first_row + place)[0]
            assert all(
                np.array_equal(getattr(batch, field.name)[place], getattr(row, field.name))
                for field in fields(Batch)
            )


def test_the_number_of_workers_changes_nothing(data, tokenizer):
    """Not the batches, and not the count of skipped samples, which the workers meet."""
    expected = None
    for workers in (0, 1, 2):
        rows = make_rows(data, MODEL, tokenizer, 0)
        read = take(rows, 7, first_row=3, workers=workers)
        if expected is None:
            expected, skipped = read, rows.skipped
            assert skipped["corrupt image"] > 0
        assert [first for _, first in read] == [first for _, first in expected]
        assert all(same(one, other) for (one, _), (other, _) in zip(read, expected, strict=True))
        assert rows.skipped == skipped and rows.skips.total.seen > 0


def test_starting_at_a_row_is_skipping_those_before(data, tokenizer):
    rows = make_rows(data, MODEL, tokenizer, 0)
    late, all_of_them = take(rows, 3, first_row=8), take(rows, 5)
    assert all(same(one, other) for (one, _), (other, _) in zip(late, all_of_them[2:], strict=True))


def test_the_batch_size_changes_no_row(data, tokenizer):
    rows = make_rows(data, MODEL, tokenizer, 0)
    large, small = take(rows, 1, batch_size=6)[0][0], take(rows, 3, batch_size=2)
    assert np.array_equal(large.tokens, np.concatenate([batch.tokens for batch, _ in small]))
    assert np.array_equal(large.images, np.concatenate([batch.images for batch, _ in small]))


def test_the_last_batch_is_filled_with_empty_rows(data, tokenizer):
    rows = make_rows(data, MODEL, tokenizer, 0, "holdout")
    read = take(rows, None, batch_size=len(rows) - 1)
    assert [first for _, first in read] == [0, len(rows) - 1]
    last = read[-1][0]
    assert last.tokens.shape == read[0][0].tokens.shape
    assert last.segment_ids[0].any() and not last.segment_ids[1:].any()
    assert np.all(last.targets[1:] == NO_TARGET) and not last.image_mask[1:].any()
    assert take(rows, None, first_row=len(rows)) == []
    assert len(take(make_rows(data, MODEL, tokenizer, 0), None, stop_row=9)) == 3


def test_too_many_skipped_samples_stop_the_run(data, tokenizer):
    """In training once a hundred samples were seen; in a single pass also at its end."""
    rows = make_rows(replace(data, skip_budget=0.01), MODEL, tokenizer, 0)
    with pytest.raises(
        InputError,
        match=r"samples cannot be used \(corrupt image: \d+\), more than skip_budget=0.01",
    ) as refused:
        take(rows, 1000)
    (folder,) = {source.image_dir for source in data.sources.values()}
    assert f"\n  corrupt image: asked.jsonl:4: {folder}/3.png: cannot identify image file" in str(
        refused.value
    )
    assert 100 <= rows.skips.total.seen < 120
    few = replace(data, skip_budget=0.01, holdout=9)  # the corrupt image is held out
    with pytest.raises(InputError, match="corrupt image"):
        take(make_rows(few, MODEL, tokenizer, 0, "holdout"), None)


def test_closed_batches_say_so(data, tokenizer):
    iterator = batches(make_rows(data, MODEL, tokenizer, 0), 2, 0, 0)
    next(iterator)
    iterator.close()
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


SCRIPT = """
    import multiprocessing, pickle, sys
    from mmjax.data.loader import batches
    if __name__ == "__main__":
        rows = pickle.load(open(sys.argv[1], "rb"))
        iterator = batches(rows, 2, 0, 1)
        next(iterator)
        print(*(process.pid for process in multiprocessing.active_children()), flush=True)
        for line in sys.stdin:
            for _ in range(20):
                next(iterator)
            print("read on", flush=True)
"""


@pytest.fixture
def script(data, tokenizer, tmp_path):
    """Starts a process that reads with one worker, and gives it and the worker's process id."""
    (tmp_path / "read.py").write_text(textwrap.dedent(SCRIPT))
    (tmp_path / "rows").write_bytes(pickle.dumps(make_rows(data, MODEL, tokenizer, 0)))

    def start() -> tuple[subprocess.Popen, int]:
        command = [sys.executable, str(tmp_path / "read.py"), str(tmp_path / "rows")]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(
            command, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, **pipes
        )
        return process, int(process.stdout.readline())

    return start


@pytest.mark.slow
def test_a_program_that_forgets_to_close_ends_in_silence(script):
    process, _ = script()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "Error" not in errors and "leaked" not in errors, errors


@pytest.mark.slow
def test_workers_survive_a_signal_to_the_group_and_end_with_their_parent(script):
    process, worker = script()
    os.kill(worker, signal.SIGTERM)
    os.kill(worker, signal.SIGINT)
    time.sleep(0.5)
    process.stdin.write("go on\n")
    process.stdin.flush()
    assert process.stdout.readline() == "read on\n"
    process.kill()
    process.wait()  # not communicate(): a worker that lives on holds the pipes open
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent")


RELEASED = threading.Event()


class NeverRows(Rows):
    """Rows that do not come."""

    def load(self, index):
        RELEASED.wait(60)
        return super().load(index)


@contextlib.contextmanager
def impatient():
    """Leaves a wait after a moment."""

    def leave(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, leave)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_wait_can_be_left_soon_and_nothing_is_counted(data, tokenizer, workers):
    rows = make_rows(data, MODEL, tokenizer, 0)
    rows.__class__ = NeverRows
    begun = time.monotonic()
    try:
        with pytest.raises(TimeoutError), batches(rows, 4, 3, workers, None, impatient) as iterator:
            next(iterator)
        assert time.monotonic() - begun < 10
        assert rows.skips.total.seen == 0 and not multiprocessing.active_children()
    finally:
        RELEASED.set()
