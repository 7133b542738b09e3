"""Batches of rows, read ahead in threads or in worker processes; which of the two, and how many, changes nothing in what comes out."""

import contextlib
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Self

import grain
import numpy as np
from absl import flags

from mmjax.data.examples import Report
from mmjax.data.packing.layout import Row, stack
from mmjax.data.packing.rows import Rows
from mmjax.typing import Batch

_ENDLESS = 1 << 60
_THREADS = 2
_AHEAD = 2
"""Batches read ahead, by this process or by each worker."""
_SHARED_BYTES = 1 << 20
"""Arrays of at least this size come from a worker in shared memory, smaller ones in a pipe (half as fast for 38 MB of pixels)."""

_Element = tuple[dict[str, np.ndarray], int, list[Report]]


def batches(
    rows: Rows,
    batch_size: int,
    first_row: int,
    workers: int,
    stop_row: int | None = None,
    waiting: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> "Batches":
    """Batches of consecutive rows.

    Args:
        rows: what to read.
        batch_size: B, rows per batch.
        first_row: index of the first row: the position in the data, all that a checkpoint needs.
        workers: processes that read; 0: threads of this process.
        stop_row: the index after the last row; None: all there are. A last batch that is not full is filled with empty rows.
        waiting: what every wait for a batch is done in; it may end the wait with an exception, and nothing is then counted as read.

    Returns:
        Yields (batch, index of its first row). Close it, or use it in a with-statement: it holds threads and processes.

    Raises:
        InputError: from next(), when too many samples cannot be used.
    """
    return Batches(rows, batch_size, first_row, workers, stop_row, waiting)


class Batches(Iterator[tuple[Batch, int]]):
    """The iterator that `batches` returns."""

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        first_row: int,
        workers: int,
        stop_row: int | None,
        waiting: Callable[[], contextlib.AbstractContextManager[None]],
    ):
        assert batch_size > 0 and first_row >= 0 and workers >= 0
        last = _ENDLESS if rows.endless else len(rows)
        stop = last if stop_row is None else min(stop_row, last)
        dataset = grain.MapDataset.range(first_row, max(stop, first_row), batch_size).map(
            _LoadBatch(rows, batch_size, stop)
        )
        self._rows, self._waiting = rows, waiting
        self._others = set(multiprocessing.active_children())
        self._elements = [iter(_read_ahead(dataset, workers))]
        # Also runs at the exit of a program that never closes: Grain's own cleaning up comes too late there, and prints errors.
        self._finish = weakref.finalize(self, _close, self._elements)

    def __next__(self) -> tuple[Batch, int]:
        if not self._finish.alive:
            raise ValueError("these batches were closed")
        try:
            with self._waiting():
                arrays, first_row, reports = next(self._elements[0])
        except StopIteration:
            self._rows.skips.check(final=True)
            raise
        self._rows.skips.add(reports)
        self._rows.skips.check()
        # One in shared memory is copied: a batch that is kept would keep its segment to the end of the program.
        owned = {
            name: array if type(array) is np.ndarray else np.array(array)
            for name, array in arrays.items()
        }
        return Batch(**owned), first_row

    def close(self) -> None:
        """Ends threads and processes. May be called more than once."""
        self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:
            # A worker that itself waits for data would be waited for.
            for process in set(multiprocessing.active_children()) - self._others:
                process.kill()
        self.close()


def _read_ahead(dataset: grain.MapDataset, workers: int) -> grain.IterDataset:
    if not workers:
        threads = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
        return dataset.to_iter_dataset(threads)
    if not flags.FLAGS.is_parsed():
        # Grain reads absl flags; outside of absl.app.run nobody has parsed them.
        flags.FLAGS.mark_as_parsed()
    alone = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    sharing = grain.experimental.DatasetOptions(min_shm_size=_SHARED_BYTES)
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_AHEAD)
    return grain.experimental.WithOptionsIterDataset(alone, sharing).mp_prefetch(
        processes, worker_init_fn=_prepare_worker
    )


def _close(elements: list[grain.DatasetIterator]) -> None:
    # And forgets it: an iterator of Grain that lives until the interpreter's teardown fails there, closed or not.
    elements.pop().close()


class _LoadBatch:
    """Loads the batch that begins at a row. The reports of its samples travel with it: the reader counts them, in the order of the rows."""

    def __init__(self, rows: Rows, batch_size: int, stop: int):
        self._rows = rows
        self._batch_size = batch_size
        self._stop = stop

    def __call__(self, first: int) -> _Element:
        indices = range(int(first), min(int(first) + self._batch_size, self._stop))
        loaded = [self._rows.load(index) for index in indices]
        padding = [Row.empty(self._rows.shape)] * (self._batch_size - len(loaded))
        batch = stack([row for row, _ in loaded] + padding)
        # A plain dictionary, because Grain looks into the structure to pass the arrays through shared memory.
        return vars(batch).copy(), int(first), [report for _, report in loaded]


def _prepare_worker(index: int, count: int) -> None:
    """Makes a worker live exactly as long as its parent: signals to the whole process group are for the parent to answer."""
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def exit_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
