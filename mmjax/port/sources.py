"""What can be ported: published models, folders of Orbax, checkpoints of a run; and what stands beside their weights."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import jax.numpy as jnp

from mmjax.data.text.tokenizer_files import write_tokenizer
from mmjax.errors import InputError
from mmjax.fetch.downloads import resolved
from mmjax.models.config import ModelConfig, VLMConfig
from mmjax.recipe.recipe import Recipe, Stage
from mmjax.runs import export, saved
from mmjax.runs.workdir import Workdir
from mmjax.typing import Params
from mmjax.weights.load import open_pretrained
from mmjax.weights.orbax_folder import is_orbax
from mmjax.weights.pretrained_protocol import (
    Origin,
    Pretrained,
    Progress,
    TensorMapping,
    line,
    stored,
)
from mmjax.weights.save import copy_companions
from mmjax.weights.vlm_checkpoint import DECODER, VISION

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
ORBAX, HUGGING_FACE = "orbax", "huggingface"


class PortSource(Protocol):
    """A model to port.

    Attributes:
        what: in words.
        target: the form that it is ported to unless another is asked for.
        config, origins, lines, unused, notes, nbytes: as `Pretrained` has them.
        dtype: that matrices are kept in unless another is asked for.
    """

    what: str
    target: str
    config: ModelConfig
    origins: tuple[Origin, ...]
    lines: list[TensorMapping]
    unused: list[str]
    notes: tuple[str, ...]
    nbytes: int
    dtype: str

    def read(self, dtype: str, progress: Progress) -> Params:
        """The parameters, on the first device. Raises InputError."""
        ...

    def companions(self, folder: Path) -> list[str]:
        """Puts into the folder of the result what stands beside the weights. Returns the names of the files, and, if there is a tokenizer
        that mmjax cannot write, the reason."""
        ...


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[PortSource]:
    """Opens what is to be ported. Raises InputError if it is none of the forms that mmjax reads, or damaged."""
    if _is_checkpoint(path):
        yield _Checkpoint(path)
        return
    if (path / "checkpoints").is_dir() and (path / "summary.json").is_file():
        raise InputError(
            f"{path} is a run. Name one of its checkpoints: {path / 'checkpoints'}/STAGE/STEP."
        )
    with open_pretrained(path) as opened:
        yield _Model(path, opened)


class _Model(PortSource):
    """A published model, or one in a folder of Orbax."""

    def __init__(self, path: Path, opened: Pretrained):
        self._path, self._opened = path, opened
        ours = is_orbax(path)
        of_gguf = path.is_dir() and any(path.glob("*.gguf")) and not any(path.glob("*.safetensors"))
        folder = (
            "a folder of Orbax"
            if ours
            else "a folder of GGUF"
            if of_gguf
            else "a folder of Hugging Face"
        )
        self.what = folder if path.is_dir() else "a file"
        self.target = HUGGING_FACE if ours else ORBAX
        self.config, self.origins, self.lines, self.unused = (
            opened.config,
            opened.origins,
            opened.lines,
            opened.unused,
        )
        self.notes, self.nbytes, self.dtype = opened.notes, opened.nbytes, opened.dtype

    def read(self, dtype: str, progress: Progress) -> Params:
        return self._opened.read(dtype=jnp.dtype(dtype), progress=progress)

    def companions(self, folder: Path) -> list[str]:
        if self._path.is_file() and self._path.suffix == ".gguf":
            return _of_gguf(self._path, folder)
        beside = self._path if self._path.is_dir() else self._path.parent
        own = any(
            (place / name).is_file() for place in (beside, beside / DECODER) for name in _TOKENIZERS
        )
        copied = _of_gguf(beside, folder) if not own and any(beside.glob("*.gguf")) else []
        copied += _copied(beside, folder)  # after it: the folder's own files win
        for part in (VISION, DECODER):
            if (beside / part).is_dir():
                (folder / part).mkdir(exist_ok=True)
                copied += [
                    f"{part}/{name}" for name in copy_companions(beside / part, folder / part)
                ]
        return copied


def _copied(beside: Path, folder: Path) -> list[str]:
    """Files of a folder, put where the tools look for them: with the decoder and the encoder, where these have folders of their own."""
    copied = copy_companions(beside, folder)
    for part, kind in (
        (DECODER, ("tokenizer", "special", "added", "vocab", "merges", "chat", "generation")),
        (VISION, ("preprocessor",)),
    ):
        for name in copied if (folder / part).is_dir() and not (beside / part).is_dir() else ():
            if name.startswith(kind):
                (folder / part / name).write_bytes((folder / name).read_bytes())
    return copied


def _of_gguf(path: Path, folder: Path) -> list[str]:
    """The tokenizer of a GGUF file, or of that in a folder, as the files that others read. Of one that mmjax does not know, the reason."""
    try:
        write_tokenizer(path, folder)
    except InputError as error:
        return [f"no tokenizer ({str(error).removesuffix('.')})"]
    return ["tokenizer.json", "tokenizer_config.json"]


class _Checkpoint(PortSource):
    """A checkpoint of a run: <workdir>/checkpoints/<stage>/<step>."""

    target = HUGGING_FACE
    notes = ()

    def __init__(self, path: Path):
        """Raises InputError if it does not belong to a run that can be read."""
        self._path = path.absolute()
        workdir = Workdir(self._path.parents[2])
        self._recipe: Recipe = saved.prepare_tokenizer(workdir.recipe(), workdir.path, build=False)[
            1
        ]
        stage: Stage = saved.find_checkpoint(self._recipe, workdir, str(path))[0]
        self.what = f"step {path.name} of stage {stage.name}"
        self.config: VLMConfig = self._recipe.stages[stage.name].model
        self.origins = export.origins(self._recipe, stage.name)
        self._params: Params = saved.read_params(self._path, self._recipe)
        self.lines = [line(name, value) for name, value in sorted(self._params.items())]
        self.nbytes = sum(value.nbytes for value in self._params.values())
        self.unused: list[str] = []
        self.dtype = "float32"

    def read(self, dtype: str, progress: Progress) -> Params:
        kept = stored(self.config, self._params, jnp.dtype(dtype))
        params: Params = {}
        for path, shape in kept.items():
            value = self._params.pop(path)
            params[path] = value.astype(shape.dtype)
            progress(value.nbytes)
        return params

    def companions(self, folder: Path) -> list[str]:
        settings = self._recipe.tokenizer
        if settings.kind != "huggingface" or not settings.path:
            return []
        inner = folder / DECODER if (folder / DECODER).is_dir() else folder
        write_tokenizer(resolved(settings.path), inner)
        return [
            f"{inner.relative_to(folder) / name}"
            for name in ("tokenizer.json", "tokenizer_config.json")
        ]


def _is_checkpoint(path: Path) -> bool:
    absolute = path.absolute()
    return absolute.name.isdecimal() and absolute.parents[1].name == "checkpoints"
