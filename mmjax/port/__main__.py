"""Converts models between the files of Hugging Face, GGUF and Orbax.

    python -m mmjax.port SRC DST [--dtype=float32|bfloat16|float16] [--to=huggingface|orbax]

SRC  a folder as transformers writes it, a GGUF file, a folder that this command or save_pretrained wrote, a checkpoint of a run
     (<workdir>/checkpoints/<stage>/<step>), fetched:NAME for what `python -m mmjax.fetch NAME` has
     brought, or hf:OWNER/NAME for a model of the Hugging Face Hub
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
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from mmjax.base import host
from mmjax.base.command import run_command
from mmjax.base.files import check_free
from mmjax.base.signals import defer_signals, interruptible
from mmjax.errors import ExitCode, InputError
from mmjax.port import DTYPES, FORMS


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (without the program's name) and returns its exit code."""
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
    parser.add_argument("--to", choices=tuple(FORMS), help="the form of the target")
    options = parser.parse_args(arguments)
    host.prepare()

    def command() -> None:
        # What can be said at once is said before jax is imported.
        check_free(options.target)
        if ":" not in options.source and not os.path.lexists(options.source):
            raise InputError(
                f"There is no {options.source}. What is ported is a folder or a file on this machine, fetched:NAME, or hf:OWNER/NAME for a "
                "model of the Hugging Face Hub."
            )
        with interruptible(), _quiet_threads():
            with defer_signals():
                from mmjax.port import port
            port.port(options.source, options.target, Console(), dtype=options.dtype, to=options.to)

    return run_command(command, when_stopped="nothing half-made was left")


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


if __name__ == "__main__":
    code = main()
    if code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED):
        sys.stderr.flush()
        os._exit(code)  # threads of Orbax would go on writing
    sys.exit(code)
