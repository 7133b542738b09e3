"""Tensors to safetensors files: one tensor in memory at a time, the same bytes for the same tensors, and all of it or nothing."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmjax.errors import InputError
from mmjax.weights.safetensors import DTYPES, INDEX, METADATA, SINGLE
from mmjax.weights.targets import in_order
from mmjax.weights.tensors import TensorInfo

# A tensor to write: its name, what it will be, and the array itself or what makes it when its turn has come.
type Tensor = tuple[str, TensorInfo, Any | Callable[[], Any]]

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_WIDTHS = list(DTYPES.values())
_ALIGNMENT = 8
_CHUNK = 16 * 1024 * 1024


def write_safetensors(
    target: Path,
    tensors: Iterable[Tensor],
    metadata: Mapping[str, str] | None = None,
    shard_bytes: float = 5e9,
) -> list[Path]:
    """Writes tensors so that the `safetensors` package and transformers read them.

    A file has the bytes that `safetensors.numpy.save_file` would write: padded header, wider dtypes first, then by name.

    Args:
        target: a name that ends in .safetensors: this one file, replaced if it exists. Any other name: a folder, made if it does not exist,
            which gets model.safetensors, or model-00001-of-0000N.safetensors and so on with their index.
        tensors: name, shape and dtype, and an array (of numpy or jax) or a function without arguments that returns one. With functions, one
            array at a time is in memory. Their order does not matter: a folder is filled by name.
        metadata: text for the header; {"format": "pt"}, which transformers asks for, if None.
        shard_bytes: how large the files of a folder become; a larger tensor has a file of its own.

    Returns the files, the index last. Raises InputError if the folder holds weights already. If anything is raised, by a tensor's function
    too, nothing is left behind and what was there is as it was.
    """
    metadata = {"format": "pt"} if metadata is None else metadata
    listed = sorted(tensors, key=lambda tensor: tensor[0])
    names = [name for name, _, _ in listed]
    assert len(set(names)) == len(names) and METADATA not in names, "tensor names must be unique"
    single = target.suffix == ".safetensors"
    folder = target.parent if single else target
    if not single:
        _check_empty(folder)
    with _made(folder), tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as draft:
        files = {target.name: listed} if single else _shards(listed, shard_bytes)
        for file, content in files.items():
            _write_file(Path(draft) / file, content, metadata)
        order = list(files)
        if len(files) > 1:
            _write_index(Path(draft) / INDEX, files)
            order.append(INDEX)
        return _publish(Path(draft), folder, order)


def _check_empty(folder: Path) -> None:
    if folder.is_dir():
        there = sorted(
            path.name
            for path in folder.iterdir()
            if path.suffix == ".safetensors" or path.name == INDEX
        )
        if there:
            raise InputError(
                f"{folder} holds weights already ({', '.join(there[:3])}). Choose another folder, or remove them."
            )


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder exists; if what is done in it fails and it did not exist before, it is gone again."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}.") from None
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()
        raise


def _shards(tensors: Sequence[Tensor], limit: float) -> dict[str, list[Tensor]]:
    """The tensors of each file, filled in order, under the file names of transformers."""
    groups: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        nbytes = tensor[1].nbytes
        if groups[-1] and size + nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += nbytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {
        f"model-{number:05d}-of-{len(groups):05d}.safetensors": group
        for number, group in enumerate(groups, 1)
    }


def _write_index(path: Path, files: Mapping[str, Sequence[Tensor]]) -> None:
    total = sum(info.nbytes for tensors in files.values() for _, info, _ in tensors)
    places = {name: file for file, tensors in files.items() for name, _, _ in tensors}
    text = json.dumps(
        {"metadata": {"total_size": total}, "weight_map": places}, indent=2, sort_keys=True
    )
    with path.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        _to_disk(file)


def _write_file(path: Path, tensors: Sequence[Tensor], metadata: Mapping[str, str]) -> None:
    """One file. Wide dtypes come first so that each tensor is aligned to its own width, which readers that cast in place need."""
    ordered = sorted(tensors, key=lambda tensor: (-_WIDTHS.index(tensor[1].dtype), tensor[0]))
    header: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, info, _ in ordered:
        begin, end = end, end + info.nbytes
        header[name] = {
            "dtype": _NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_ALIGNMENT, "little") + text)
        for name, info, value in ordered:
            _write_array(file, name, info, value)
        _to_disk(file)


def _write_array(file: BinaryIO, name: str, info: TensorInfo, value: Any) -> None:
    array = np.asarray(value() if callable(value) else value)
    assert (array.shape, array.dtype) == (info.shape, info.dtype), (
        name,
        info,
        array.shape,
        array.dtype,
    )
    rows = array.reshape(1) if not array.ndim else array
    step = max(1, _CHUNK * len(rows) // max(1, array.nbytes))
    for begin in range(0, len(rows), step):
        # A transposed array is brought into order by parts.
        file.write(in_order(rows[begin : begin + step]).reshape(-1).view(np.uint8).data)


def _to_disk(file: Any) -> None:
    """Before a file gets its final name, its bytes must have arrived: otherwise a power cut could leave a name without content."""
    file.flush()
    os.fsync(file.fileno())


def _publish(draft: Path, folder: Path, files: Sequence[str]) -> list[Path]:
    """Gives finished files their names, the index last: what has no index yet is not taken for weights."""
    done: list[Path] = []
    try:
        for file in files:
            (draft / file).replace(folder / file)
            done.append(folder / file)
    except BaseException:
        for path in done:
            path.unlink()
        raise
    return done
