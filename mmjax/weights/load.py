"""Models by path, in every form that mmjax reads: opened for reading, and as modules."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh, Sharding
from jax.typing import DTypeLike

from mmjax.distributed.mesh import parameter_shardings
from mmjax.fetch.downloads import resolved
from mmjax.models import parameters
from mmjax.models.vlm import VLM, LanguageModel, VisionEncoder
from mmjax.weights import orbax_folder, vlm_checkpoint
from mmjax.weights.pretrained_files import open_pretrained_files
from mmjax.weights.pretrained_protocol import Pretrained, Progress, dtype_name

DTYPES = ("float32", "bfloat16")
"""What models compute in."""


def form_of(path: Path) -> Literal["orbax", "vlm", "published"]:
    """Which form a path has, if it has any: what `save_orbax` wrote, a whole model in three folders, or else a published model."""
    if (path / orbax_folder.CONFIG).exists():
        return "orbax"
    if all((path / part).is_dir() for part in vlm_checkpoint.PARTS):
        return "vlm"
    return "published"


def open_pretrained(path: Path) -> Pretrained:
    """Opens a folder of transformers, a GGUF file, or what `save_pretrained` or `save_orbax` wrote.

    Raises:
        InputError: nothing usable is there, mmjax does not have the family, or tensors are missing, unexpected or misshapen.
    """
    match form_of(path):
        case "orbax":
            return orbax_folder.open_orbax(path)
        case "vlm":
            return vlm_checkpoint.open_vlm_checkpoint(path)
        case "published":
            return open_pretrained_files(path)


def load_pretrained(
    path: Path | str,
    *,
    mesh: Mesh | None = None,
    dtype: DTypeLike = "float32",
    progress: Progress = lambda _: None,
) -> LanguageModel | VisionEncoder | VLM:
    """A published model: `decoder(tokens [B, T])` gives logits [B, T, V] in float32, `encoder(pixels [B, h, w, 3], layers=(...))` hidden
    states, and a VLM takes a Batch.

    Args:
        path: a folder of transformers (safetensors), a GGUF file, or what `save_pretrained` wrote; "hf:OWNER/NAME" for a model of the
            Hugging Face Hub.
        mesh: over which parameters are split as in training (`mmjax.distributed.mesh`); None: all lie on the first device. No host ever
            holds more than one tensor, and of a long one some rows only.
        dtype: "float32" or "bfloat16", of matrices and of the computation; norms, softmax and logits are float32 in any case.
        progress: told the number of bytes after each read.

    What in the files is not as their config says, or is not known, is logged as a warning.

    Raises:
        InputError: a ValueError whose message says what is wrong with the files, and what to do.
        ValueError: there is no such dtype.
    """
    name: Any = dtype_name(dtype, DTYPES)
    with open_pretrained(resolved(str(path))) as pretrained:
        config = dataclasses.replace(pretrained.config, compute_dtype=name)
        model_def, shapes = parameters.abstract(config)
        shardings: Mapping[str, Sharding] | None = None
        if mesh is not None:
            shardings = parameter_shardings(shapes, parameters.logical_axes(config), mesh)[0]
        params = pretrained.read(shapes, shardings, dtype=jnp.dtype(name), progress=progress)
        for note in pretrained.notes:
            logging.warning("%s", note)
        module = model_def.merge(params)
        module.origins = pretrained.origins
        return module
