"""Tensors by path: which format a file or a folder has, and a helpful sentence where it is none that mmjax reads."""

import contextlib
import os
import re
from pathlib import Path

from mmjax.errors import InputError
from mmjax.weights.gguf import MAGIC, GGUFSource
from mmjax.weights.safetensors import INDEX, SINGLE, SafetensorsSource, open_sharded
from mmjax.weights.tensors import DiskFile, TensorSource

_USABLE = (
    "mmjax reads safetensors (one file, or a folder with model.safetensors or its index) and GGUF."
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin.index.json")
_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_OTHERS = {
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".onnx": "ONNX",
    ".npz": "numpy",
    ".npy": "numpy",
    ".gz": "packed",
    ".zip": "packed",
}
_SHARD = re.compile(r"-\d{5}-of-\d{5}\..*safetensors$")
_INDEX_SUFFIX = ".safetensors.index.json"
_BEGINNING = 24


def open_weights(path: Path) -> TensorSource:
    """Opens a folder or a file of weights. The format is found by content, not by the name alone.

    In a folder: model.safetensors; or model.safetensors.index.json with its files; or the only .safetensors file; or the only .gguf file.
    Raises InputError, which says what to do, if there is nothing usable, more than one choice, or damage.
    """
    if os.path.isdir(path):
        path = _file_of_folder(path)
    elif not os.path.lexists(path):
        raise InputError(
            f"There is no {path}. Weights are a folder or a file on this machine, or hf:OWNER/NAME for a model of the Hugging Face Hub."
        )
    with contextlib.closing(DiskFile(path)) as file:
        beginning = file.read(0, min(file.size, _BEGINNING))
    if not beginning:
        raise InputError(f"{path} is empty.")
    if beginning.startswith(MAGIC):
        return GGUFSource(path)
    if path.suffix in _OTHERS:
        raise InputError(f"{path} is a {_OTHERS[path.suffix]} file. {_USABLE}")
    if path.name.endswith(_PICKLES):
        raise _pickled(path)
    if path.name.endswith(_INDEX_SUFFIX):
        return open_sharded(path)
    # Before pickles: the length of a header, which comes before its brace, may look like the beginning of one.
    if beginning[8:9] == b"{":
        return SafetensorsSource(path)
    if beginning.startswith(_PICKLE_MAGIC):
        raise _pickled(path)
    if path.suffix == ".safetensors":
        return SafetensorsSource(path)
    raise InputError(f"{path} is no file of weights that mmjax knows. {_USABLE}")


def _file_of_folder(folder: Path) -> Path:
    """The file of a folder that is opened for it. Raises InputError if there is none, or more than one."""

    def listed(files: list[Path]) -> str:
        shown = ", ".join(path.name for path in files[:5])
        return f"{shown}, ..." if len(files) > 5 else shown

    try:
        files = sorted(path for path in folder.iterdir() if not os.path.isdir(path))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}.") from None
    usual = [path for path in files if path.name in (SINGLE, INDEX)]
    if len(usual) > 1:
        raise InputError(
            f"{folder} has both {SINGLE} and {INDEX}. Name the one that is meant, or remove the other."
        )
    found = (
        usual
        or [path for path in files if path.suffix == ".safetensors"]
        or [path for path in files if path.suffix == ".gguf"]
    )
    shard = next((path.name for path in found if _SHARD.search(path.name)), None)
    if shard:
        raise InputError(
            f"{folder} has parts of a model ({shard}) but no {INDEX} that says which. Is it complete?"
        )
    if len(found) > 1:
        raise InputError(
            f"{folder} has {len(found)} files of weights: {listed(found)}. Name the one that is meant."
        )
    if found:
        return found[0]
    pickles = [path for path in files if path.name.endswith(_PICKLES)]
    if pickles:
        raise _pickled(pickles[0])
    raise InputError(
        f"{folder} has no weights{f', only {listed(files)}' if files else ': no file at all'}. {_USABLE}"
    )


def _pickled(path: Path) -> InputError:
    return InputError(
        f"{path} is a pickle: loading it would run whatever code its author put into it. Convert it to safetensors where it is trusted, "
        "for example with transformers: AutoModel.from_pretrained(folder).save_pretrained(new_folder)."
    )
