"""Models by path, in every form that mmjax reads.

Published models as modules.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh, Sharding
from jax.typing import DTypeLike

from mmjax.distributed.mesh import parameter_shardings
from mmjax.models import parameters
from mmjax.models.vlm import VLM, LanguageModel, VisionEncoder
from mmjax.weights.orbax_folder import is_orbax, open_orbax
from mmjax.weights.pretrained_files import open_published
from mmjax.weights.pretrained_protocol import (
    Origin,
    Pretrained,
    Progress,
    TensorMapping,
    dtype_name,
)
from mmjax.weights.vlm_checkpoint import is_whole, open_whole

__all__ = ["Origin", "Pretrained", "Progress", "TensorMapping", "open_pretrained"]


def open_pretrained(path: Path) -> Pretrained:
    """Opens a folder of transformers, a GGUF file, or what `save_pretrained` or `save_orbax` wrote.

    Raises:
        InputError: nothing usable is there, mmjax does not have the family, or tensors are missing, unexpected or misshapen.
    """
    if is_orbax(path):
        return open_orbax(path)
    return open_whole(path) if is_whole(path) else open_published(path)


DTYPES = ("float32", "bfloat16")
"""What models compute in."""


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
        path: a folder of transformers (safetensors), a GGUF file, or what `save_pretrained` wrote.
        mesh: over which parameters are split as in training (`mmjax.distributed.mesh`); None: all lie on the first device. No host ever
        holds more
            than one tensor, and of a long one some rows only.
        dtype: "float32" or "bfloat16", of matrices and of the computation; norms, softmax and logits are float32 in any case.
        progress: told the number of bytes after each read.

    Raises:
        InputError: a ValueError whose message says what is wrong with the files, and what to do.
        ValueError: there is no such dtype.
    """
    dtype = dtype_name(dtype, DTYPES)
    with open_pretrained(Path(path)) as opened:
        config = _with_compute_dtype(opened.config, dtype)
        model_def, shapes = parameters.abstract(config)
        shardings: Mapping[str, Sharding] | None = None
        if mesh is not None:
            shardings = parameter_shardings(shapes, parameters.logical_axes(config), mesh)[0]
        params = opened.read(shapes, shardings, dtype=jnp.dtype(dtype), progress=progress)
        module = model_def.merge(params)
        module.origins = opened.origins
        return module


def _with_compute_dtype(config: Any, dtype: str) -> Any:
    return dataclasses.replace(config, compute_dtype=dtype)
