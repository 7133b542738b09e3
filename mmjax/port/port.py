"""A model of one form as a folder of another, and what is said about it."""

import math
import time
from pathlib import Path

import jax.numpy as jnp
from rich.console import Console

from mmjax.base.files import atomic_directory, check_free, free_space
from mmjax.errors import InputError
from mmjax.fetch.cache import FetchProgress
from mmjax.fetch.downloads import resolved
from mmjax.models import parameters
from mmjax.port import DTYPES, FORMS
from mmjax.port.sources import open_source
from mmjax.port.table import listed, show
from mmjax.training.logging import print_line
from mmjax.weights.orbax_folder import save_orbax
from mmjax.weights.pretrained_protocol import Progress, TensorMapping, dtype_name, stored
from mmjax.weights.save import has_whole, save_params, saved_mappings


def port(
    source: str, target: Path, console: Console, *, dtype: str | None = None, to: str | None = None
) -> None:
    """Converts a model. Arguments as on the command line of `python -m mmjax.port`.

    Raises:
        InputError: the source is damaged or of no form that mmjax reads, or the target exists or cannot be written. Nothing is written
            then.
        ValueError: there is no such dtype.
    """
    begun = time.monotonic()
    check_free(target)
    with open_source(resolved(source)) as model:
        dtype = model.dtype if dtype is None else dtype_name(dtype, DTYPES)
        to = to or model.target
        if to == "huggingface":
            mappings = saved_mappings(model.config, model.origins, dtype)
        else:
            shapes = parameters.abstract(model.config)[1]
            kept = stored(model.config, shapes, jnp.dtype(dtype))
            mappings = [TensorMapping.identity(path, shape) for path, shape in kept.items()]
        tensors = {mapping.name: mapping for mapping in mappings}  # one may hold several parameters
        nbytes = sum(
            mapping.count * math.prod(mapping.shape) * jnp.dtype(mapping.dtype).itemsize
            for mapping in tensors.values()
        )
        if to == "huggingface" and has_whole(model.config):
            nbytes *= 2
        if (free := free_space(target)) < nbytes:
            raise InputError(
                f"{target} needs {_megabytes(nbytes)}, and there are {_megabytes(free)} left on its disk."
            )
        with atomic_directory(target) as draft, FetchProgress(target.name, console) as progress:
            progress.note(f"{FORMS[to]} in {dtype}, from {model.what}, {source}")
            progress.begin(f"reading {_megabytes(model.nbytes)}", model.nbytes)
            params = model.read(dtype, _summed(progress))
            total = nbytes if to == "huggingface" else None
            progress.begin(f"writing {_megabytes(nbytes)}", total)
            if to == "huggingface":
                save_params(
                    params,
                    model.config,
                    draft,
                    origins=model.origins,
                    dtype=dtype,
                    progress=_summed(progress),
                )
            else:
                save_orbax(params, model.config, draft, origins=model.origins)
            beside = listed(sorted(model.copy_companions(draft)))
        show(console, model.mappings, mappings, model.unused)
    seconds = time.monotonic() - begun
    for line in (
        *(f"Note: {note}" for note in model.notes),
        f"Beside the weights: {beside or 'nothing; there was no tokenizer and no image processor'}",
        f"{target} is ready after {seconds:.0f} s: mmjax.weights.load_pretrained({str(target)!r})",
    ):
        print_line(console, line)


def _summed(bar: FetchProgress) -> Progress:
    """Tells a bar, which has to know all that is done, of what is done in addition."""
    done = 0

    def add(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        bar.advance(done)

    return add


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"
