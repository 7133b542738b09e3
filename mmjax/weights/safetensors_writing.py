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
from mmjax.weights.targets import copy
from mmjax.weights.tensors import TensorInfo

# A tensor to write: its name, what it will be, and the array itself or what makes it when it is written.
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
    too, the new files are removed and what was there is as it was.
    """
    metadata = {"format": "pt"} if metadata is None else metadata
    listed = sorted(tensors, key=lambda tensor: tensor[0])
    names = [name for name, _, _ in listed]
    assert len(set(names)) == len(names) and METADATA not in names, "tensor names must be unique"
    if target.suffix == ".safetensors":
        folder, files = target.parent, {target.name: listed}
    else:
        folder, files = target, _shards(listed, shard_bytes)
        there = sorted(
            path.name
            for path in (folder.iterdir() if folder.is_dir() else ())
            if path.suffix == ".safetensors" or path.name == INDEX
        )
        if there:
            raise InputError(
                f"{folder} holds weights already ({', '.join(there[:3])}). Choose another folder, or remove them."
            )
    with _made(folder), tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as draft:
        for name, content in files.items():
            _write_file(Path(draft) / name, content, metadata)
        order = list(files)
        if len(files) > 1:
            total = sum(info.nbytes for content in files.values() for _, info, _ in content)
            places = {name: file for file, content in files.items() for name, _, _ in content}
            index = {"metadata": {"total_size": total}, "weight_map": places}
            with (Path(draft) / INDEX).open("w", encoding="utf-8") as file:
                file.write(json.dumps(index, indent=2, sort_keys=True) + "\n")
                _to_disk(file)
            order.append(INDEX)
        # The index is the last to get its name: files without one are not taken for weights.
        done: list[Path] = []
        try:
            for name in order:
                (Path(draft) / name).replace(folder / name)
                done.append(folder / name)
        except BaseException:
            for path in done:
                path.unlink()
            raise
        return done


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


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder exists; if what is done in it fails and it did not exist before, it is removed again."""
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
    """One tensor, whose array is gone when this returns; of a transposed one, a part at a time is brought into order."""
    array = np.asarray(value() if callable(value) else value)
    found = TensorInfo(array.shape, array.dtype)
    assert found == info, (name, info, found)
    rows = array.reshape(1) if not array.ndim else array
    step = max(1, _CHUNK * len(rows) // max(1, array.nbytes))
    for begin in range(0, len(rows), step):
        part = rows[begin : begin + step]
        if not part.flags.c_contiguous:
            ordered = np.empty(part.shape, part.dtype)
            copy(ordered, part)
            part = ordered
        file.write(part.reshape(-1).view(np.uint8).data)


def _to_disk(file: Any) -> None:
    """Before a file gets its final name, its bytes must have arrived: otherwise a power cut could leave a name without content."""
    file.flush()
    os.fsync(file.fileno())
