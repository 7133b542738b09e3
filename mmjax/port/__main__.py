"""Converts models between the files of Hugging Face, GGUF and Orbax.

    python -m mmjax.port SRC DST [--dtype=float32|bfloat16|float16] [--to=huggingface|orbax]

SRC  a folder as transformers writes it, a GGUF file, a folder that this command or save_pretrained wrote, a checkpoint of a run
     (<workdir>/checkpoints/<stage>/<step>), or fetched:NAME for what `python -m mmjax.fetch NAME` has brought
DST  a folder that does not exist yet: of Orbax if SRC is of Hugging Face or GGUF, and the other way round, unless --to says otherwise

Tokenizer, chat template and the settings of generation and images are put beside the weights. Exit codes: 0 done, 2 it cannot be done,
130 interrupted, 143 terminated; DST then does not exist.
"""

import argparse
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mmjax.base import host
from mmjax.base.signals import SigtermInterrupt, defer_signals, interruptible
from mmjax.errors import InputError

if TYPE_CHECKING:
    from mmjax.port.sources import PortSource
    from mmjax.typing import Params
    from mmjax.weights.pretrained_protocol import TensorMapping

DONE, WRONG_INPUT, INTERRUPTED, TERMINATED = 0, 2, 130, 143
DTYPES = ("float32", "bfloat16", "float16")
TARGETS = {"huggingface": "a folder of Hugging Face", "orbax": "a folder of Orbax"}


def port(
    source: str,
    target: Path,
    *,
    dtype: str | None = None,
    to: str | None = None,
    console: Console | None = None,
) -> None:
    """Converts a model. Arguments as on the command line.

    Raises:
        InputError: the source is damaged or of no form that mmjax reads, or the target exists or cannot be written. Nothing is left behind.
        ValueError: there is no such dtype.
    """
    with defer_signals():
        from mmjax.base.files import atomic_directory, check_free
        from mmjax.fetch.cache import FetchProgress
        from mmjax.fetch.downloads import resolved
        from mmjax.port.sources import open_source
        from mmjax.port.table import listed, show
        from mmjax.weights.pretrained_protocol import dtype_name

    console = console or Console()
    begun = time.monotonic()
    check_free(target)
    with open_source(resolved(source)) as opened:
        dtype, to = (
            opened.dtype if dtype is None else dtype_name(dtype, DTYPES),
            to or opened.target,
        )
        lines = _lines(opened, to, dtype)
        _check_space(target, _size(lines))
        with atomic_directory(target) as draft, FetchProgress(target.name, console) as progress:
            progress.note(f"{TARGETS[to]} in {dtype}, from {opened.what}, {source}")
            progress.begin(f"reading {_megabytes(opened.nbytes)}", opened.nbytes)
            params = opened.read(dtype, _added(progress.advance))
            progress.begin(
                f"writing {_megabytes(_size(lines))}", _size(lines) if to == "huggingface" else None
            )
            _write(opened, params, draft, to, dtype, _added(progress.advance))
            beside = opened.companions(draft)
        show(console, opened.lines, lines, opened.unused)
    for note in opened.notes:
        _print(console, f"Note: {note}")
    _print(
        console,
        f"Beside the weights: {listed(sorted(beside)) or 'nothing; there was no tokenizer and no image processor'}",
    )
    _print(
        console,
        f"{target} is ready after {time.monotonic() - begun:.0f} s: mmjax.weights.load_pretrained({str(target)!r})",
    )


def _lines(source: "PortSource", to: str, dtype: str) -> "list[TensorMapping]":
    """What will stand where in the target. Raises InputError if no family of published models has the form of the model."""
    import jax.numpy as jnp

    from mmjax.models import parameters
    from mmjax.weights.pretrained_protocol import line, stored
    from mmjax.weights.save import saved_lines

    if to == "huggingface":
        return saved_lines(source.config, source.origins, dtype)
    shapes = stored(source.config, parameters.abstract(source.config)[1], jnp.dtype(dtype))
    return [line(path, shape) for path, shape in shapes.items()]


def _write(
    source: "PortSource", params: "Params", draft: Path, to: str, dtype: str, progress: Any
) -> None:
    from mmjax.weights.orbax_folder import save_orbax
    from mmjax.weights.save import save_params

    if to == "huggingface":
        save_params(
            params, source.config, draft, origins=source.origins, dtype=dtype, progress=progress
        )
    else:
        save_orbax(params, source.config, draft, origins=source.origins)


def _size(lines: "Sequence[TensorMapping]") -> int:
    """Bytes that all tensors take."""
    import math

    import jax.numpy as jnp

    tensors = {line.name: line for line in lines}.values()  # one may hold several parameters
    return sum(
        line.count * math.prod(line.shape) * jnp.dtype(line.dtype).itemsize for line in tensors
    )


def _check_space(target: Path, needed: int) -> None:
    from mmjax.base.files import free_space

    if (free := free_space(target)) < needed:
        raise InputError(
            f"{target} needs {_megabytes(needed)}, and there are {_megabytes(free)} left on its disk."
        )


def _added(advance: Any) -> Any:
    """Sums what a bar is to be told, which wants to know all that is done."""
    done = 0

    def add(size: int) -> None:
        nonlocal done
        done += size
        advance(done)

    return add


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m mmjax.port",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC", help="what is converted")
    parser.add_argument("target", metavar="DST", type=Path, help="the folder that is made")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of matrices; that of the source by default"
    )
    parser.add_argument("--to", choices=tuple(TARGETS), help="the form of the target")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """While it lasts, threads that an interrupt ends say nothing."""
    logger, hook = logging.getLogger("absl"), threading.excepthook

    level = logger.level
    logger.setLevel(logging.CRITICAL)
    threading.excepthook = lambda _: None
    try:
        yield
    finally:
        logger.setLevel(level)
        threading.excepthook = hook


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (without the program's name) and returns its exit code."""
    options = _parse(arguments)
    host.prepare()
    try:
        with interruptible(), _quiet_threads():
            port(options.source, options.target, dtype=options.dtype, to=options.to)
    except InputError as error:
        print(f"mmjax: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("mmjax: Interrupted; nothing half-made was left.", file=sys.stderr)
        return INTERRUPTED
    except SigtermInterrupt:
        print("mmjax: SigtermInterrupt; nothing half-made was left.", file=sys.stderr)
        return TERMINATED
    return DONE


if __name__ == "__main__":
    code = main()
    if code in (INTERRUPTED, TERMINATED):
        sys.stderr.flush()
        os._exit(code)  # threads of Orbax would go on writing
    sys.exit(code)
