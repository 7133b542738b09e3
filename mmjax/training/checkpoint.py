"""States on disk, by Orbax: whole, asynchronous, published in one step, with a digest of every array that is checked when it is read.

A checkpoint `checkpoints/<stage>/<step>` holds the state's arrays under their paths, and as metadata the index of the next data row, the digest
of the recipe, the digests of the arrays, and what else the loop needs to go on as if nothing had happened.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any, Self

import jax
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import v1 as ocp

from mmjax.errors import InputError
from mmjax.training.state import TrainState
from mmjax.typing import Array, Params

DAMAGED = ".damaged"
SCORE = "held_out_loss"


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
        directory: of the stage; made when needed.
        keep_last: how many of the newest stay.
        keep_best: whether the one with the lowest held-out loss stays, too.
    """

    def __init__(self, directory: pathlib.Path, *, keep_last: int = 2, keep_best: bool = True):
        policies = ocp.training.preservation_policies
        keep: list[Any] = [policies.LatestN(keep_last)]
        if keep_best:
            keep.append(
                policies.BestN(get_metric_fn=lambda metrics: metrics[SCORE], reverse=True, n=1, keep_checkpoints_without_metrics=False)
            )
        self._directory = directory.absolute()
        self._policy = policies.AnyPreservationPolicy(keep)
        self._checkpointer = self._open()

    def _open(self) -> ocp.training.Checkpointer:
        # What a killed save has left behind is a directory with another name; it is removed here.
        return ocp.training.Checkpointer(self._directory, preservation_policy=self._policy, cleanup_tmp_directories=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for a save that is under way."""
        self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """Steps that are published, in order."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(self, step: int, state: TrainState, row: int, metadata: Mapping[str, Any], score: float | None = None) -> bool:
        """Begins to save a state; the arrays are copied before this returns. A published step is never written again (returns False).

        Args:
            metadata: JSON-like; `score`: the held-out loss, if it was just measured.
        """
        self._checkpointer.wait()
        if step in self.steps:
            return False
        flat = by_path(state)
        content = {"row": row, "digests": {path: digest(value) for path, value in flat.items()}, **metadata}
        metrics = None if score is None else {SCORE: score}
        self._checkpointer.save_async(step, unflatten_dict(flat, sep="/"), force=True, metrics=metrics, custom_metadata=content)
        return True

    def restore_latest(self, abstract: TrainState) -> Restored | None:
        """The newest state that is whole, or None if there is none. A damaged one is reported, set aside, and the one before it is read.

        Args:
            abstract: shapes, dtypes and shardings to restore to.

        Raises:
            InputError: the newest readable checkpoint has other parameters than `abstract`.
        """
        for step in reversed(self.steps):
            try:
                restored = self._restore(step, abstract)
            except InputError:
                raise
            except Exception as error:  # whatever a damaged file makes the reader raise
                logging.error("Checkpoint %s cannot be used: %s. Trying the one before it.", self._directory / str(step), error)
                self._set_aside(step)
                continue
            return restored
        return None

    def _restore(self, step: int, abstract: TrainState) -> Restored:
        metadata = dict(self._checkpointer.metadata(step).custom_metadata)
        digests = metadata.pop("digests")
        flat = by_path(abstract)
        _check_structure(f"{self._directory / str(step)}", self._shapes(step), flat)
        loaded = flatten_dict(self._checkpointer.load(step, unflatten_dict(flat, sep="/")), sep="/")
        assert loaded.keys() == flat.keys()
        _check_digests(loaded, digests)
        state = jax.tree.unflatten(jax.tree.structure(abstract), [loaded[path] for path in flat])
        return Restored(state, step, metadata.pop("row"), metadata)

    def _shapes(self, step: int) -> dict[str, Any]:
        return flatten_dict(self._checkpointer.metadata(step).metadata, sep="/")

    def _set_aside(self, step: int) -> None:
        """Renames a damaged checkpoint: a published step is never overwritten, and this one will be saved again."""
        self._checkpointer.close()
        source = self._directory / str(step)
        target = source.with_name(source.name + DAMAGED)
        number = 0
        while target.exists():
            number += 1
            target = source.with_name(f"{source.name}{DAMAGED}.{number}")
        source.rename(target)
        self._checkpointer = self._open()


def load_params(checkpoint: pathlib.Path) -> tuple[Params, dict[str, Any]]:
    """All parameters of a checkpoint folder, without the optimizer, and its metadata.

    Raises:
        InputError: the folder is no checkpoint of mmjax, or its arrays are damaged.
    """
    try:
        step = int(checkpoint.name)
        if not checkpoint.is_dir():
            raise ValueError("there is no such folder")
        with ocp.training.Checkpointer(checkpoint.absolute().parent) as checkpointer:
            described = checkpointer.metadata(step)
            metadata = dict(described.custom_metadata)
            shapes = flatten_dict(described.metadata, sep="/")
            wanted = {path: _abstract(shape) for path, shape in shapes.items() if path.startswith(("trainable/", "frozen/"))}
            context = ocp.Context()
            context.pytree.loading.partial_load = True
            with context:
                loaded = flatten_dict(checkpointer.load(step, unflatten_dict(wanted, sep="/")), sep="/")
        _check_digests(loaded, {path: metadata["digests"][path] for path in loaded})
    except Exception as error:  # whatever a folder that is something else makes the reader raise
        raise InputError(f"{checkpoint} cannot be read as a checkpoint: {error}") from error
    metadata.pop("digests")
    return {path.partition("/")[2]: value for path, value in loaded.items()}, metadata


def _abstract(shape: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def by_path(state: TrainState) -> dict[str, Any]:
    """The leaves of a state by path ("trainable/decoder/norm/scale", "optimizer/mu/decoder/norm/scale", "step"), in the tree's order."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {"/".join(str(getattr(key, "name", getattr(key, "key", None))) for key in path): leaf for path, leaf in leaves}


def digest(value: Array) -> str:
    """Of an array's dtype, shape and bytes."""
    array = np.asarray(value)
    content = hashlib.blake2b(f"{array.dtype}{array.shape}".encode(), digest_size=16)
    content.update(np.ascontiguousarray(array).view(np.uint8).data)
    return content.hexdigest()


def _check_digests(loaded: Mapping[str, Any], digests: Mapping[str, str]) -> None:
    abstract = [path for path, value in loaded.items() if not isinstance(value, jax.Array)]
    if abstract:
        raise ValueError(f"these arrays were not read: {', '.join(abstract)}")
    wrong = [path for path, value in loaded.items() if digest(value) != digests[path]]
    if wrong:
        raise ValueError(f"the content of {len(wrong)} arrays is not what was saved: {', '.join(wrong[:5])}")


def _check_structure(where: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    problems = [f"{path}: missing" for path in wanted if path not in found]
    problems += [f"{path}: not part of this model" for path in found if path not in wanted]
    problems += [
        f"{path}: {tuple(found[path].shape)} there, {tuple(wanted[path].shape)} here"
        for path in wanted
        if path in found and tuple(found[path].shape) != tuple(wanted[path].shape)
    ]
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:12])
        more = f"\n  and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise InputError(f"The checkpoint {where} belongs to another model:\n{shown}{more}")
