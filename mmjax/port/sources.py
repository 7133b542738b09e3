"""What can be ported: published models, folders of Orbax, checkpoints of a run; and the files that belong beside their weights."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import jax.numpy as jnp

from mmjax.base.files import open_regular
from mmjax.base.huggingface import IMAGES, PROCESSOR, image_settings
from mmjax.data.text.tokenizer_files import write_tokenizer
from mmjax.errors import InputError
from mmjax.models.config import ModelConfig
from mmjax.port import FORMS
from mmjax.runs import origins
from mmjax.runs.workdir import Workdir, read_params
from mmjax.typing import Params
from mmjax.weights.families.base import dumps
from mmjax.weights.load import form_of, open_pretrained
from mmjax.weights.pretrained_protocol import Origin, Pretrained, Progress, TensorMapping, stored
from mmjax.weights.vlm_checkpoint import DECODER, VISION

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_WRITTEN = ["tokenizer.json", "tokenizer_config.json"]
# Files that do not depend on the weights: tokenizer, chat template, settings of generation and of images.
_OF_DECODER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
)
_OF_VISION = (IMAGES,)
_OF_ALL = (PROCESSOR, "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


class PortSource(Protocol):
    """A model to port.

    Attributes:
        what: in words.
        target: the form that it is ported to unless another is asked for.
        config, origins, mappings, unused, notes, nbytes: as `Pretrained` has them.
        dtype: that matrices are kept in unless another is asked for.
    """

    what: str
    target: str
    config: ModelConfig
    origins: tuple[Origin, ...]
    mappings: list[TensorMapping]
    unused: list[str]
    notes: tuple[str, ...]
    nbytes: int
    dtype: str

    def read(self, dtype: str, progress: Progress) -> Params:
        """The parameters, on the first device. Raises InputError."""
        ...

    def copy_companions(self, folder: Path) -> list[str]:
        """Puts into the folder of the result what belongs beside the weights. Returns the names of the files, and, if there is a tokenizer
        that mmjax cannot write, the reason."""
        ...


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[PortSource]:
    """Opens what is to be ported. Raises InputError if it is none of the forms that mmjax reads, or damaged."""
    absolute = path.absolute()
    if absolute.name.isdecimal() and absolute.parents[1].name == "checkpoints":
        yield _Checkpoint(path)
        return
    if (path / "checkpoints").is_dir() and (path / "summary.json").is_file():
        raise InputError(
            f"{path} is a run. Name one of its checkpoints: {path / 'checkpoints'}/STAGE/STEP."
        )
    with open_pretrained(path) as pretrained:
        yield _Model(path, pretrained)


class _Model(PortSource):
    """A published model, or one in a folder of Orbax."""

    def __init__(self, path: Path, pretrained: Pretrained):
        self._path, self._pretrained = path, pretrained
        form = "orbax" if form_of(path) == "orbax" else "huggingface"
        self.target = "huggingface" if form == "orbax" else "orbax"
        if not path.is_dir():
            self.what = "a file"
        elif form != "orbax" and any(path.glob("*.gguf")) and not any(path.glob("*.safetensors")):
            self.what = "a folder of GGUF"
        else:
            self.what = FORMS[form]
        self.config, self.origins = pretrained.config, pretrained.origins
        self.mappings, self.unused = pretrained.mappings, pretrained.unused
        self.notes, self.nbytes, self.dtype = pretrained.notes, pretrained.nbytes, pretrained.dtype

    def read(self, dtype: str, progress: Progress) -> Params:
        return self._pretrained.read(dtype=jnp.dtype(dtype), progress=progress)

    def copy_companions(self, folder: Path) -> list[str]:
        if self._path.is_file() and self._path.suffix == ".gguf":
            return _write_gguf_tokenizer(self._path, folder)
        beside = self._path if self._path.is_dir() else self._path.parent
        has_tokenizer = any(
            (place / name).is_file() for place in (beside, beside / DECODER) for name in _TOKENIZERS
        )
        copied = []
        if not has_tokenizer and any(beside.glob("*.gguf")):
            copied += _write_gguf_tokenizer(beside, folder)
        # After it: the folder's own files win. Where decoder and encoder have folders of their own in the result and not in the source, the
        # tools look there.
        copied += _copy(beside, folder, (*_OF_DECODER, *_OF_VISION, *_OF_ALL))
        # Beside a decoder, the settings of a processor say which of several chat templates counts.
        for part, patterns in ((DECODER, (*_OF_DECODER, PROCESSOR, IMAGES)), (VISION, _OF_VISION)):
            if (beside / part).is_dir():
                (folder / part).mkdir(exist_ok=True)
                found = _copy(beside / part, folder / part, (*_OF_DECODER, *_OF_VISION, *_OF_ALL))
                copied += [f"{part}/{name}" for name in found]
            elif (folder / part).is_dir():
                _copy(beside, folder / part, patterns)
        return list(dict.fromkeys(copied))


def _copy(source: Path, target: Path, patterns: tuple[str, ...]) -> list[str]:
    """Copies the files of a folder whose names fit. Returns their names.

    Settings of images in processor_config.json, where transformers 5 writes them, become a preprocessor_config.json too: older versions,
    and tools for an encoder alone, look there.
    """
    # A link to nothing is found by its name only.
    found = {source / name for name in patterns if os.path.lexists(source / name)}
    found |= {path for pattern in patterns for path in source.glob(pattern)}
    names = {str(path.relative_to(source)): path for path in found if not path.is_dir()}
    for name, path in names.items():
        os.close(open_regular(path)[0])  # refuses a pointer to a file that was not fetched
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target / name)
    settings = image_settings(source) if IMAGES in patterns else None
    if settings is not None and settings[0].name == PROCESSOR:
        (target / IMAGES).write_text(dumps(settings[1]), encoding="utf-8")
        names[IMAGES] = target / IMAGES
    return sorted(names)


def _write_gguf_tokenizer(path: Path, folder: Path) -> list[str]:
    """The tokenizer of a GGUF file, or of that in a folder, as the files of transformers. Of one that mmjax does not know, the reason."""
    try:
        write_tokenizer(path, folder)
    except InputError as error:
        return [f"no tokenizer ({str(error).removesuffix('.')})"]
    return list(_WRITTEN)


class _Checkpoint(PortSource):
    """A checkpoint of a run: <workdir>/checkpoints/<stage>/<step>."""

    target = "huggingface"
    notes = ()
    dtype = "float32"

    def __init__(self, path: Path):
        """Raises InputError if it does not belong to a run that can be read."""
        self._workdir = workdir = Workdir(path.absolute().parents[2])
        self._stage, _ = workdir.find_checkpoint(workdir.recipe(), str(path))
        self._recipe, self._tokenizer = workdir.resolve(workdir.recipe())
        self._params = read_params(path.absolute(), self._recipe)
        name = self._stage.name
        self.what = f"step {path.name} of stage {name}"
        self._begun = origins.began_as(self._recipe, workdir, name)
        model = self._recipe.stages[name].model
        self.config = origins.with_context(model, self._stage, self._begun)
        self.origins = tuple(
            part.origin for part in self._begun.values() if part.origin is not None
        )
        self.mappings = [
            TensorMapping.identity(name, value) for name, value in sorted(self._params.items())
        ]
        self.nbytes = sum(value.nbytes for value in self._params.values())
        self.unused = []

    def read(self, dtype: str, progress: Progress) -> Params:
        params: Params = {}
        for path, shape in stored(self.config, self._params, jnp.dtype(dtype)).items():
            value = self._params.pop(path)
            params[path] = value.astype(shape.dtype)
            progress(value.nbytes)
        return params

    def copy_companions(self, folder: Path) -> list[str]:
        inner = folder / DECODER if (folder / DECODER).is_dir() else folder
        names = origins.write_beside_decoder(
            self._workdir, self._recipe, self._stage, self._tokenizer, self._begun, inner
        )
        licences = origins.write_licences(self._workdir, self._recipe, self._stage.name, folder)
        return [*(str((inner / name).relative_to(folder)) for name in names), *licences]
