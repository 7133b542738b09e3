"""Published models as modules."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh, Sharding
from jax.typing import DTypeLike

from mmjax.mesh_axes import parameter_shardings
from mmjax.models import parameters
from mmjax.models.standalone import LanguageModel, VisionEncoder
from mmjax.models.vlm import VLM
from mmjax.weights.opened import dtype_name
from mmjax.weights.pretrained import Progress, open_pretrained

DTYPES = ("float32", "bfloat16")
"""What models compute in."""


def load_pretrained(
    path: Path | str, *, mesh: Mesh | None = None, dtype: DTypeLike = "float32", progress: Progress = lambda _: None
) -> LanguageModel | VisionEncoder | VLM:
    """A published model: `decoder(tokens [B, T])` gives logits [B, T, V] in float32, `encoder(pixels [B, h, w, 3], layers=(...))` hidden
    states, and a VLM takes a Batch.

    Args:
        path: a folder of transformers (safetensors), a GGUF file, or what `save_pretrained` wrote.
        mesh: over which parameters are split as in training (`mmjax.mesh_axes`); None: all lie on the first device. No host ever holds more
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
        structure, shapes = parameters.abstract(config)
        shardings: Mapping[str, Sharding] | None = None
        if mesh is not None:
            shardings = parameter_shardings(shapes, parameters.logical_axes(config), mesh)[0]
        params = opened.read(shapes, shardings, dtype=jnp.dtype(dtype), progress=progress)
        module = structure.merge(params)
        module.origins = opened.origins
        return module


def _with_compute_dtype(config: Any, dtype: str) -> Any:
    return dataclasses.replace(config, compute_dtype=dtype)
