"""Tensors to safetensors files, with one tensor in memory at a time and the same bytes for the same tensors.

The `safetensors` package writes what is in memory as a whole; so a file is written here, byte for byte as the package would.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmjax.weights.safetensors import DTYPES, INDEX, METADATA
from mmjax.weights.targets import copy
from mmjax.weights.tensors import TensorInfo

# A tensor to write: its name, what it will be, and the array itself or what makes it when it is written.
type Tensor = tuple[str, TensorInfo, Any | Callable[[], Any]]

_FORMAT = {"format": "pt"}  # transformers asks for it
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_WIDTHS = list(DTYPES.values())
_ALIGNMENT = 8
_CHUNK = 16 * 1024 * 1024


def write_safetensors(
    folder: Path, tensors: Iterable[Tensor], shard_bytes: int = 5_000_000_000
) -> None:
    """Writes tensors so that the `safetensors` package and transformers read them: model.safetensors, or model-00001-of-0000N.safetensors
    and so on with their index.

    Args:
        folder: made if it does not exist. It belongs to whoever calls (`base.files.atomic_directory`): if anything is raised, by a tensor's
            function too, half of the files are in it.
        tensors: name, shape and dtype, and an array (of numpy or jax) or a function without arguments that returns one. With functions, one
            array at a time is in memory. Their order does not matter: files are filled by name.
        shard_bytes: how large files become; a larger tensor has a file of its own.
    """
    from huggingface_hub import split_state_dict_into_shards_factory  # takes 0.3 s to import

    listed = sorted(tensors, key=lambda tensor: tensor[0])
    by_name = {tensor[0]: tensor for tensor in listed}
    assert len(by_name) == len(listed) and METADATA not in by_name, "tensor names must be unique"
    split = split_state_dict_into_shards_factory(
        by_name,
        get_storage_size=lambda tensor: tensor[1].nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for shard, names in split.filename_to_tensors.items():
        _write_file(folder / shard, [by_name[name] for name in names])
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        with (folder / INDEX).open("wb") as file:
            file.write((json.dumps(index, indent=2, sort_keys=True) + "\n").encode())
            _to_disk(file)


def _write_file(path: Path, tensors: Sequence[Tensor]) -> None:
    """One file. Wide dtypes come first so that each tensor is aligned to its own width, which readers that cast in place need."""
    ordered = sorted(tensors, key=lambda tensor: (-_WIDTHS.index(tensor[1].dtype), tensor[0]))
    header: dict[str, Any] = {METADATA: _FORMAT}
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


def _to_disk(file: BinaryIO) -> None:
    """Before the folder gets its name, the bytes must have arrived: otherwise a power cut could leave a name without content."""
    file.flush()
    os.fsync(file.fileno())
