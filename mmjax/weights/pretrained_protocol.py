"""A model on disk that is open for reading, whatever form it has there; shapes and dtypes of its parameters."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from mmjax.errors import InputError
from mmjax.models import check_model_config, parameters
from mmjax.models.config import LanguageModelConfig, ModelConfig, VisionEncoderConfig, VLMConfig
from mmjax.typing import Params

type Shapes = Mapping[str, jax.ShapeDtypeStruct]
type Progress = Callable[[int], None]

SHOWN = 8
"""Tensors of one kind that a message lists."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a part of a model came from, for writing it back as the same family.

    Attributes:
        part: "vision", "decoder" or "connector".
        family: its name.
        kept: settings of its config.json that mmjax has no use for, as JSON.
    """

    part: str
    family: str
    kept: str


@dataclasses.dataclass(frozen=True)
class TensorMapping:
    """Which tensors of a checkpoint and which parameter are the same numbers.

    Attributes:
        name: of the tensors, with "{layer}" and "{expert}" where they are many.
        count: how many tensors they are; shape: of each.
        dtype: how they are stored: "float32", "Q4_1", and with a slash between where they differ.
        part: which rows of the tensor, such as "2 of 3"; "" for all of it.
        param_path: the path of the parameter.
    """

    name: str
    count: int
    shape: tuple[int, ...]
    dtype: str
    part: str
    param_path: str

    @classmethod
    def identity(cls, path: str, value: Any) -> "TensorMapping":
        """That of a parameter that is stored under its own path. `value` has its shape and dtype."""
        return cls(path, 1, value.shape, jnp.dtype(value.dtype).name, "", path)


@dataclasses.dataclass(frozen=True)
class Cut:
    """Some blocks of a stacked parameter of a checkpoint, as a parameter of their own.

    Attributes:
        path: of the stacked parameter; first: the block that the new parameter begins with.
    """

    path: str
    first: int


class Pretrained(Protocol):
    """A model that is open for reading. Use it as a context manager.

    Attributes:
        config: with float32 as compute dtype.
        shapes: of all parameters, float32.
        origins: what writing it back needs.
        notes: sentences about what in the files is not as their config says.
        dtype: of the matrices, if all have the same that mmjax can hold; or else float32.
        nbytes: of all tensors that parameters are made from, as they are read.
        mappings: which tensors the parameters are made from.
        unused: names of tensors that no parameter is made from.
    """

    config: ModelConfig
    shapes: dict[str, jax.ShapeDtypeStruct]
    origins: tuple[Origin, ...]
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def mappings(self) -> list[TensorMapping]: ...

    @property
    def unused(self) -> list[str]: ...

    def read(
        self,
        shapes: Shapes | None = None,
        shardings: Mapping[str, Sharding] | None = None,
        *,
        dtype: Any = jnp.float32,
        cuts: Mapping[str, Cut] = MappingProxyType({}),
        progress: Progress = lambda _: None,
    ) -> Params:
        """Parameters, or those of `shapes` only.

        Args:
            shapes: which parameters, by path. A stack may have fewer layers than there are: the first ones are read.
            cuts: by path, those of `shapes` that are some blocks of another parameter.
            shardings: where each will lie; None: on the first device.
            dtype: of matrices; vectors (norms, biases) are float32.
            progress: told the bytes that were read.

        Raises:
            InputError: a tensor holds numbers that are not finite, or a file cannot be read any more.
        """
        ...

    def close(self) -> None:
        """Closes the files."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def shapes_of(model: ModelConfig, where: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a model's parameters. Raises InputError, naming the file that the config comes from, if there can be no such model."""
    vision = None if isinstance(model, LanguageModelConfig) else model.vision
    decoder = None if isinstance(model, VisionEncoderConfig) else model.decoder
    problems = [check_model_config.problems(part) for part in (vision, decoder) if part is not None]
    if isinstance(model, VLMConfig):
        problems.append(
            check_model_config.connector_problems(model.connector, model.vision, "connector")
        )
    for problem in itertools.chain.from_iterable(problems):
        raise InputError(f"{where}: {problem}.")
    try:
        with np.errstate(all="ignore"):
            return parameters.abstract(model)[1]
    except (ValueError, TypeError, ArithmeticError, MemoryError, AssertionError) as error:
        reason = str(error).split("\n", 1)[0][:200]
        raise InputError(
            f"{where}: no model can be built from these settings: {reason or type(error).__name__}."
        ) from None


def matrix_paths(config: ModelConfig, paths: Iterable[str]) -> set[str]:
    """Those of the parameters that are matrices, layer by layer; the others are vectors."""
    axes = parameters.logical_axes(config)
    return {path for path in paths if sum(name != "layers" for name in axes[path]) >= 2}


def stored(
    config: ModelConfig,
    shapes: Mapping[str, Any],
    dtype: Any,
    cuts: Mapping[str, Cut] = MappingProxyType({}),
) -> dict[str, jax.ShapeDtypeStruct]:
    """Parameters of a config, or blocks of them, with the dtypes that they are kept in: matrices in `dtype`, vectors in float32."""
    names = {path: cuts[path].path if path in cuts else path for path in shapes}
    matrices = matrix_paths(config, names.values())
    return {
        path: jax.ShapeDtypeStruct(shape.shape, dtype if names[path] in matrices else jnp.float32)
        for path, shape in shapes.items()
    }


def common_dtype(dtypes: Iterable[Any]) -> str:
    """The name of the dtype that all have, if that is bfloat16 or float16; or else "float32", which holds every number of all of them."""
    names = {jnp.dtype(dtype).name for dtype in dtypes}
    return names.pop() if len(names) == 1 and names <= {"bfloat16", "float16"} else "float32"


def dtype_name(dtype: Any, possible: Sequence[str]) -> str:
    """The name of a dtype, of jax or numpy or a name itself. Raises ValueError if it is none of the possible ones."""
    try:
        name = dtype if dtype is None or isinstance(dtype, str) else jnp.dtype(dtype).name
    except TypeError:
        name = dtype
    if name not in possible:
        raise ValueError(f"dtype is {name!r}; it must be one of {', '.join(possible)}.")
    return str(name)
