"""Models in the form of mmjax itself: a folder with the config as JSON and the parameters under their paths, written by Orbax.

| file | what |
|---|---|
| mmjax.json | the config, and which published models the parts came from |
| params/ | the parameters, an Orbax checkpoint |
"""

import contextlib
import dataclasses
import gc
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from mmjax.base.files import atomic_directory
from mmjax.errors import InputError
from mmjax.models.config import LanguageModelConfig, ModelConfig, VisionEncoderConfig, VLMConfig
from mmjax.recipe.schema import KeyPath, convert
from mmjax.recipe.serialization import to_plain
from mmjax.typing import Array, Params
from mmjax.weights.families.base import dumps, read_config
from mmjax.weights.pretrained_protocol import (
    SHOWN,
    Cut,
    Origin,
    Pretrained,
    Progress,
    Shapes,
    TensorMapping,
    common_dtype,
    matrix_paths,
    shapes_of,
    stored,
)

CONFIG = "mmjax.json"
PARAMS = "params"
VERSION = 1
KINDS: dict[str, type[ModelConfig]] = {
    "decoder": LanguageModelConfig,
    "vision": VisionEncoderConfig,
    "vlm": VLMConfig,
}

CHUNK = 32 * 1024 * 1024
"""Bytes of an array that lie together on the disk, and that are read together."""
IN_FLIGHT = 256 * 1024 * 1024
"""Bytes that are read from the disk at once, beside what is in its place already."""


def save_orbax(
    params: Params, config: ModelConfig, directory: Path, *, origins: Sequence[Origin] = ()
) -> None:
    """Writes a model to a folder that `open_orbax` reads. The folder appears whole or not at all.

    Raises:
        InputError: the folder has files already, it cannot be written, or a parameter has numbers that are not finite.
    """
    for path, value in params.items():
        if not bool(_is_finite(value)):
            raise InputError(
                f"{path} has numbers that are not finite (NaN or infinite) in {value.dtype}, and is not written."
            )
    kind = next(kind for kind, of in KINDS.items() if isinstance(config, of))
    settings = {
        "version": VERSION,
        "kind": kind,
        "config": to_plain(config),
        "origins": to_plain(list(origins)),
    }
    with atomic_directory(directory) as draft:
        draft.mkdir()
        (draft / CONFIG).write_text(dumps(settings), encoding="utf-8")
        context = ocp.Context()
        context.array.saving.use_compression = False  # random numbers do not get smaller
        context.array.saving.storage_options.chunk_byte_size = CHUNK
        with context, _quiet():
            ocp.save(draft / PARAMS, dict(params))


def open_orbax(path: Path) -> "OrbaxFolder":
    """Opens what `save_orbax` wrote. Raises InputError if it is damaged, or does not hold the parameters of its config."""
    settings = read_config(path, CONFIG)
    if settings.number("version") != VERSION:
        raise InputError(
            f"{settings.where} has version {settings.number('version')}; this mmjax reads version {VERSION}."
        )
    try:
        config = convert(settings.content.get("config"), settings.choice("kind", KINDS), KeyPath())
        origins = convert(settings.content.get("origins"), tuple[Origin, ...], KeyPath())
    except InputError as error:
        raise InputError(f"{settings.where}: {error}") from None
    config = dataclasses.replace(config, compute_dtype="float32")
    folder = path / PARAMS
    if not folder.is_dir():
        raise InputError(f"{path} has no {PARAMS}, where the parameters should be.")
    with _quiet(), _readable(path):
        tree = ocp.metadata(folder).metadata
        if not isinstance(tree, Mapping):
            raise ValueError("it does not say what is in it")
        found = {
            str(name): jax.ShapeDtypeStruct(tuple(value.shape), value.dtype)
            for name, value in tree.items()
        }
    return OrbaxFolder(path, config, origins, found)


class OrbaxFolder(Pretrained):
    """A `Pretrained` whose parameters Orbax reads."""

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        origins: Sequence[Origin],
        found: Mapping[str, jax.ShapeDtypeStruct],
    ):
        """Raises InputError if what was found is not what the config needs."""
        self._path, self._found = path, found
        self.config, self.origins = config, tuple(origins)
        self.shapes = shapes_of(config, path / CONFIG)
        problems = [
            f"missing: {name} {list(shape.shape)}"
            for name, shape in self.shapes.items()
            if name not in found
        ]
        problems += [
            f"unexpected: {name} {list(shape.shape)}"
            for name, shape in found.items()
            if name not in self.shapes
        ]
        for name, shape in found.items():
            wanted = self.shapes.get(name)
            if wanted is not None and (
                shape.shape != wanted.shape or not jnp.issubdtype(shape.dtype, jnp.floating)
            ):
                problems.append(
                    f"misshapen: {name} is {shape.dtype}{list(shape.shape)} and should be {list(wanted.shape)}"
                )
        if problems:
            more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
            raise InputError(
                f"{path} does not hold the parameters of its config:\n"
                + "\n".join(f"  {p}" for p in problems[:SHOWN] + more)
            )

    @property
    def dtype(self) -> str:
        return common_dtype(
            {self._found[path].dtype for path in matrix_paths(self.config, self.shapes)}
        )

    @property
    def nbytes(self) -> int:
        return sum(
            math.prod(shape.shape) * jnp.dtype(shape.dtype).itemsize
            for shape in self._found.values()
        )

    @property
    def mappings(self) -> list[TensorMapping]:
        return [TensorMapping.identity(path, shape) for path, shape in self._found.items()]

    @property
    def unused(self) -> list[str]:
        return []

    def read(
        self,
        shapes: Shapes | None = None,
        shardings: Mapping[str, Sharding] | None = None,
        *,
        dtype: Any = jnp.float32,
        cuts: Mapping[str, Cut] = MappingProxyType({}),
        progress: Progress = lambda _: None,
    ) -> Params:
        wanted = stored(self.config, self.shapes if shapes is None else shapes, dtype, cuts)
        first = SingleDeviceSharding(jax.devices()[0])
        params: Params = {}
        for path, shape in wanted.items():
            sharding = shardings[path] if shardings else first
            name, begin = (cuts[path].path, cuts[path].first) if path in cuts else (path, 0)
            # Orbax can skip the last layers of a stack, but no first ones.
            until = (begin + shape.shape[0], *shape.shape[1:]) if begin else shape.shape
            context = ocp.Context()
            context.pytree.loading.partial_load = True
            context.array.loading.enable_padding_and_truncation = True
            context.memory.read_concurrent_bytes = IN_FLIGHT
            with context, _quiet(), _readable(self._path):
                target = {name: jax.ShapeDtypeStruct(until, shape.dtype, sharding=sharding)}
                value = ocp.load(self._path / PARAMS, target)[name]
            if not bool(_is_finite(value)):
                raise InputError(
                    f"{self._path}: {name} has numbers that are not finite (NaN or infinite)."
                )
            params[path] = value[begin:] if begin else value
            progress(math.prod(until) * jnp.dtype(self._found[name].dtype).itemsize)
        return params

    def close(self) -> None:
        return None  # no file stays open


@jax.jit
def _is_finite(value: Array) -> Array:
    return jnp.isfinite(value).all()


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Any exception that a damaged checkpoint makes Orbax raise, as an InputError."""
    try:
        yield
    except (InputError, MemoryError, jax.errors.JaxRuntimeError):
        raise  # the latter two: this computer cannot hold the arrays, which is no fault of the files
    except Exception as error:
        reason = str(error).split("\n", 1)[0][:200]
        kind = type(error).__name__
    else:
        return
    raise InputError(f"{path} is damaged: Orbax cannot read it ({kind}: {reason}).")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's remarks, and without those about its other reads, which fail with the first and say so a little later."""
    names = ("absl", "asyncio")
    before = {name: logging.getLogger(name).level for name in names}
    hook = sys.unraisablehook

    def ignore_closed_loops(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, RuntimeError) or "loop is closed" not in str(
            unraisable.exc_value
        ):
            hook(unraisable)

    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = ignore_closed_loops
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except InputError:
        gc.collect()
        raise
    else:
        sys.unraisablehook = hook
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
