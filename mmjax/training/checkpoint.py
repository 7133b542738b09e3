"""States on disk, by Orbax: whole, asynchronous, published in one step, and verified against digests when they are read.

A checkpoint `checkpoints/<stage>/<step>` has two items: `state`, the arrays under their paths, and `record` (`Record`), which says what
they are, has a digest of each, and says where training goes on and how good the state is. The record carries a digest of itself, so that a
damaged data position or held-out loss is noticed as a damaged array is.

Orbax writes and reads; which checkpoints stay is decided here, from their records, after each save: what a process that was killed has left
over is collected by the next one. A save that fails is reported, and the next one tries again.
"""

import asyncio
import contextlib
import dataclasses
import gc
import hashlib
import json
import logging as python_logging
import math
import pathlib
import shutil
import sys
import warnings
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import jax
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding
from orbax.checkpoint import v1 as ocp

from mmjax.errors import InputError
from mmjax.training.state import TrainState
from mmjax.typing import Array, Params

FILE = "record.json"
DAMAGED = ".damaged"
_DRAFT = ".orbax-checkpoint-tmp"  # of a save that is under way
_DELETED = ".deleted"  # of one that is being removed
_NEVER = 10**9  # seconds
_SHOWN = 12  # problems that a message lists


class DamagedError(Exception):
    """A checkpoint is not what was saved."""


class Record:
    """One item of a checkpoint, written by Orbax in the background and published together with the arrays.

    Attributes:
        row: index of the first data row that the state has not seen.
        metadata: what the loop needs to go on, JSON-like.
        score: the held-out loss of this state; None: it was not measured.
        arrays: by path, {"dtype", "shape", "digest"}.
    """

    def __init__(
        self,
        row: int = 0,
        metadata: Mapping[str, Any] | None = None,
        state: Mapping[str, Array] | None = None,
        score: float | None = None,
    ):
        """state: the arrays to describe, by path; without it the record is to be loaded."""
        self.row, self.metadata, self.score = row, dict(metadata or {}), score
        self.arrays: dict[str, dict[str, Any]] = {}
        self._state = state
        self._text = ""

    async def save(self, directory: ocp.path.PathAwaitingCreation) -> Awaitable[None]:
        """Copies the arrays to the host before it returns: the next step consumes them. The rest happens in the background."""
        assert self._state is not None
        for value in self._state.values():
            value.copy_to_host_async()
        host = {path: np.asarray(value) for path, value in self._state.items()}
        self._state = None
        return self._write(directory, host)

    async def _write(
        self, directory: ocp.path.PathAwaitingCreation, host: dict[str, np.ndarray]
    ) -> None:
        self.arrays = await asyncio.to_thread(
            lambda: {path: describe(value) for path, value in host.items()}
        )
        content = {
            "row": self.row,
            "metadata": self.metadata,
            "score": self.score,
            "arrays": self.arrays,
        }
        folder = await directory.await_creation()
        (folder / FILE).write_text(
            json.dumps({"content": content, "digest": _digest_json(content)})
        )

    async def load(self, directory: ocp.path.Path) -> Awaitable[None]:
        """Reads the text of the record; `parse` understands it."""

        async def read() -> None:
            self._text = (directory / FILE).read_text()

        return read()

    def parse(self) -> None:
        """Understands and checks what was loaded. Raises DamagedError."""
        try:
            record = json.loads(self._text)
            content = record["content"]
            intact = record["digest"] == _digest_json(content)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"its {FILE} cannot be read ({error!r})") from None
        if not intact:
            raise DamagedError(f"its {FILE} is not what was saved")
        self.row, self.metadata = content["row"], content["metadata"]
        self.score, self.arrays = content.get("score"), content["arrays"]

    @classmethod
    def of(cls, folder: pathlib.Path) -> Self:
        """The record of a published checkpoint, read without Orbax. Raises DamagedError."""
        record = cls()
        try:
            record._text = (folder / "record" / FILE).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DamagedError(f"its {FILE} cannot be read ({error})") from None
        record.parse()
        return record

    def verify(self, loaded: Mapping[str, Any]) -> None:
        """Holds arrays, by path, against their digests. Raises DamagedError naming those that differ or were not read at all."""
        absent = [path for path, value in loaded.items() if not isinstance(value, jax.Array)]
        if absent:
            raise DamagedError(f"these arrays were not read: {', '.join(absent[:5])}")
        with ThreadPoolExecutor() as threads:
            found = dict(zip(loaded, threads.map(describe, loaded.values()), strict=True))
        wrong = [path for path in found if found[path] != self.arrays[path]]
        if wrong:
            raise DamagedError(
                f"the content of {len(wrong)} of its arrays is not what was saved: {', '.join(wrong[:5])}"
            )


def describe(value: Array | np.ndarray) -> dict[str, Any]:
    """Type, shape and digest of an array."""
    array = np.asarray(value)
    content = hashlib.blake2b(f"{array.dtype}{array.shape}".encode(), digest_size=16)
    content.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return {"dtype": str(array.dtype), "shape": list(array.shape), "digest": content.hexdigest()}


def _digest_json(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclasses.dataclass(frozen=True)
class Restored:
    """A state from disk.

    Attributes:
        row: index of the first data row that the state has not seen.
        metadata: what `save` was given.
    """

    state: TrainState
    step: int
    row: int
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints of one stage. Use it as a context manager: leaving it waits for a save that is under way.

    Args:
        directory: of the stage; made when needed. What a killed save has left there is removed.
        keep_last: how many of the newest stay.
        keep_best: whether the one with the lowest held-out loss stays, too.

    Attributes:
        failure: why the newest save failed; None: it did not.
    """

    def __init__(self, directory: pathlib.Path, *, keep_last: int = 2, keep_best: bool = True):
        assert keep_last > 0
        self._directory = directory.absolute()
        self._keep_last, self._keep_best = keep_last, keep_best
        self.failure: str | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._pending: tuple[int, Future[None]] | None = None
        logging.get_absl_logger().addFilter(_is_ours)
        self._directory.mkdir(parents=True, exist_ok=True)
        for left in self._leftovers():
            shutil.rmtree(left)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for a save that is under way. After one that failed, its threads may still have something to say, which is not shown."""
        if self.wait():
            logging.get_absl_logger().removeFilter(_is_ours)
        self._thread.shutdown()
        for left in self._leftovers() if self._directory.is_dir() else ():
            shutil.rmtree(
                left, ignore_errors=True
            )  # threads of a save that failed may have made more of it

    def _leftovers(self) -> list[pathlib.Path]:
        """What saves and removals that were cut short have left; to be asked while none is under way."""
        return [
            left for ending in (_DRAFT, _DELETED) for left in self._directory.glob(f"*{ending}*")
        ]

    @property
    def steps(self) -> list[int]:
        """Steps that are published, in order."""
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdecimal())

    def save(
        self,
        step: int,
        state: TrainState,
        row: int,
        metadata: Mapping[str, Any],
        score: float | None = None,
    ) -> bool:
        """Begins to save a state; its arrays may be given away as soon as this returns. If it fails, now or later, `failure` says why.

        Args:
            metadata: JSON-like.
            score: the held-out loss of this very state, if it was measured; only states that have one can be the best.

        Returns:
            False if the step is published already: it is never written again.
        """
        self.wait()
        if sys.unraisablehook is not _say_less:
            _SAY[:] = [sys.unraisablehook]
            sys.unraisablehook = _say_less
        try:
            if step in self.steps:
                return False
            flat = by_path(state)
            score = score if score is not None and math.isfinite(score) else None
            items = {
                "state": unflatten_dict(flat, sep="/"),
                "record": Record(row, metadata, flat, score),
            }
            context = ocp.Context()
            # Folders are made before this returns: threads of Orbax would wait long for one that cannot be made. And they have no limit of
            # time, as it would be that of a clock that may jump.
            context.async_options.create_directories_asynchronously = False
            context.async_options.timeout_secs = _NEVER
            with context:
                response = ocp.save_checkpointables_async(self._directory / str(step), items)
        except OSError as error:
            self._fail(step, error)
        else:
            self.failure, self._pending = None, (step, self._thread.submit(self._publish, response))
        return True

    def wait(self) -> bool:
        """Waits for a save that is under way. Returns whether the newest save, if there was one, was published."""
        if self._pending is not None:
            (step, future), self._pending = self._pending, None
            try:
                future.result()
            except (MemoryError, jax.errors.JaxRuntimeError):
                raise
            except Exception as error:  # whatever a disk makes the writer raise
                self._fail(step, error)
        return self.failure is None

    def _publish(self, response: ocp.AsyncResponse[None]) -> None:
        """In the background: waits until a checkpoint has its name, and removes those that need not stay."""
        response.result()
        try:
            self._collect()
        except OSError as error:
            logging.error(
                "Old checkpoints in %s were not removed: %s.", self._directory, error.strerror
            )

    def _collect(self) -> None:
        for left in self._leftovers():
            shutil.rmtree(left, ignore_errors=True)
        readable = {}
        for step in self.steps:
            # What cannot be judged is no reason to remove another, and stays.
            with contextlib.suppress(DamagedError):
                readable[step] = Record.of(self._directory / str(step)).score
        stay = set(list(readable)[-self._keep_last :])
        scores = {step: score for step, score in readable.items() if score is not None}
        if self._keep_best and scores:
            stay.add(min(scores, key=lambda step: (scores[step], -step)))
        for step in readable.keys() - stay:
            # By another name first: half a checkpoint is none.
            removed = (self._directory / str(step)).rename(self._directory / f"{step}{_DELETED}")
            shutil.rmtree(removed)

    def _fail(self, step: int, error: Exception) -> None:
        lines = str(error.strerror if isinstance(error, OSError) else error).strip().splitlines()
        self.failure = (lines or [type(error).__name__])[0][:300]
        logging.error(
            "The checkpoint %s was not saved: %s.", self._directory / str(step), self.failure
        )
        shutil.rmtree(self._directory / f"{step}{_DRAFT}", ignore_errors=True)

    def restore_latest(self, abstract: TrainState) -> Restored | None:
        """The newest state that is whole, or None if nothing was ever saved.

        Damaged ones on the way are reported and then, once a good one is found, set aside under another name: their steps come again.

        Args:
            abstract: shapes, dtypes and shardings to restore to.

        Raises:
            InputError: the newest readable checkpoint has other arrays than `abstract`, or there are checkpoints and none can be read.
        """
        damaged: list[int] = []
        for step in reversed(self.steps):
            try:
                restored = self._restore(step, abstract)
            except DamagedError as error:
                logging.error(
                    "The checkpoint %s is damaged: %s. Trying the one before it.",
                    self._directory / str(step),
                    error,
                )
                damaged.append(step)
                continue
            if damaged:
                for number in damaged:
                    self._rename_damaged(self._directory / str(number))
                logging.error("Going on from the checkpoint %s.", self._directory / str(step))
            return restored
        if damaged:
            raise InputError(
                f"None of the {len(damaged)} checkpoints in {self._directory} can be read. If the disk is in order and they are lost, "
                "remove that folder to begin the stage anew."
            )
        return None

    def _restore(self, step: int, abstract: TrainState) -> Restored:
        folder = self._directory / str(step)
        record = _load_record(folder)
        found, wanted = record.arrays, by_path(abstract)
        problems = [f"{path}: missing" for path in wanted if path not in found]
        problems += [f"{path}: not part of this model" for path in found if path not in wanted]
        for path in wanted.keys() & found.keys():
            there = f"{found[path]['dtype']}{found[path]['shape']}"
            here = f"{wanted[path].dtype}{list(wanted[path].shape)}"
            if there != here:
                problems.append(f"{path}: {there} there, {here} here")
        if problems:
            shown = "\n".join(f"  {problem}" for problem in sorted(problems)[:_SHOWN])
            more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            raise InputError(f"The checkpoint {folder} belongs to another model:\n{shown}{more}")
        loaded = _load_arrays(folder, wanted)
        record.verify(loaded)
        state = jax.tree.unflatten(jax.tree.structure(abstract), [loaded[path] for path in wanted])
        return Restored(state, step, record.row, record.metadata)

    def _rename_damaged(self, folder: pathlib.Path) -> None:
        target, number = folder.with_name(f"{folder.name}{DAMAGED}"), 0
        while target.exists():
            number += 1
            target = folder.with_name(f"{folder.name}{DAMAGED}.{number}")
        folder.rename(target)


def _is_ours(record: python_logging.LogRecord) -> bool:
    """Not what Orbax logs of a save that fails, with a traceback for each of its threads: `Checkpoints` says it in a line."""
    return record.exc_info is None or "orbax" not in pathlib.PurePath(record.pathname).parts


_SAY: list[Callable[["sys.UnraisableHookArgs"], object]] = []  # the hook before `_say_less`


def _say_less(ignored: "sys.UnraisableHookArgs") -> None:
    """Not what threads of the writer print when a save fails: that nobody waits for them any more, hundreds of times."""
    if str(ignored.exc_value) != "Event loop is closed":
        _SAY[0](ignored)


def load_params(
    checkpoint: pathlib.Path, shardings: Mapping[str, Sharding] | None = None
) -> tuple[Params, dict[str, Any]]:
    """Parameters of a checkpoint folder, without the optimizer; and its metadata.

    Args:
        shardings: where each parameter goes, by path: others are not read; None: all of them to the first device.

    Raises:
        InputError: the folder is no checkpoint of mmjax, or it is damaged.
    """
    if not checkpoint.is_dir():
        raise InputError(f"There is no checkpoint {checkpoint}.")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    try:
        record = _load_record(checkpoint.absolute())
        places = {
            path: path.partition("/")[2]
            for path in record.arrays
            if path.startswith(("trainable/", "frozen/"))
        }
        wanted = {
            path: jax.ShapeDtypeStruct(
                record.arrays[path]["shape"],
                record.arrays[path]["dtype"],
                sharding=device if shardings is None else shardings[name],
            )
            for path, name in places.items()
            if shardings is None or name in shardings
        }
        loaded = _load_arrays(checkpoint.absolute(), wanted)
        record.verify(loaded)
    except DamagedError as error:
        raise InputError(
            f"{checkpoint} cannot be used as a checkpoint: {error}. If it is a damaged one, remove it to use the one before."
        ) from None
    return {path.partition("/")[2]: value for path, value in loaded.items()}, record.metadata


def load_metadata(checkpoint: pathlib.Path) -> dict[str, Any]:
    """What `Checkpoints.save` was given beside the state; empty if it cannot be read."""
    try:
        return _load_record(checkpoint.absolute()).metadata
    except DamagedError:
        return {}


def by_path(state: TrainState) -> dict[str, Any]:
    """The leaves of a state by path ("trainable/decoder/norm/scale", "optimizer/mu/decoder/norm/scale", "step"), in the tree's order."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        "/".join(str(getattr(key, "name", getattr(key, "key", None))) for key in path): leaf
        for path, leaf in leaves
    }


def _load_record(folder: pathlib.Path) -> Record:
    record = Record()
    _load(folder, {"record": record})
    record.parse()
    return record


def _load_arrays(
    folder: pathlib.Path, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, Array]:
    """Arrays by path; the checkpoint may have more."""
    context = ocp.Context()
    # What is missing comes back abstract, which `Record.verify` finds.
    context.pytree.loading.partial_load = True
    with context:
        state = _load(folder, {"state": unflatten_dict(dict(wanted), sep="/")})["state"]
    return flatten_dict(state, sep="/")


def _load(folder: pathlib.Path, items: dict[str, Any]) -> dict[str, Any]:
    try:
        return ocp.load_checkpointables(folder, items)
    except (DamagedError, MemoryError, jax.errors.JaxRuntimeError):
        raise  # the latter two: this computer cannot hold the arrays, which is no fault of the files
    except Exception as error:  # whatever a damaged file makes the reader raise
        reason = f"it cannot be read ({type(error).__name__}: {str(error)[:300]})"
    # The reader's other tasks have failed, too; asyncio would print each when it is collected, at a page per array.
    asyncio_log = python_logging.getLogger("asyncio")
    asyncio_log.disabled = True
    with warnings.catch_warnings(action="ignore"):
        gc.collect()
    asyncio_log.disabled = False
    raise DamagedError(reason)
