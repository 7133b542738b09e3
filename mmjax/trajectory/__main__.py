"""Where a decoder's prediction settles: what each of its layers already predicts, and where a surrogate of it could be cut.

    python -m mmjax.trajectory --weights=PATH --text=FILE [--out=DIR] [--measure=positions|vocabulary] [--samples=100] [--length=256]
        [--dtype=float32] [--tokenizer=PATH]

PATH is a folder of transformers, a GGUF file, a folder that mmjax wrote, fetched:NAME for what `python -m mmjax.fetch NAME` has
brought, or hf:OWNER/NAME for a model of the Hugging Face Hub; of a whole model, the decoder is read. FILE is UTF-8: samples are separated
by blank lines, or, where its name ends in .jsonl, each line is one, {"text": ...}. The first --samples of them that have three tokens are
read, and of each the first --length tokens.

Every layer's state goes through the model's own final norm and head; the curves say how far these predictions are from the last layer's.
The result is written to DIR, runs/trajectory-NAME by default: trajectory.json, trajectory.svg and trajectory.html. In the folder of a run,
the run's report shows it, too. docs/trajectory.md says how to read it.

Exit codes: 0 done, 2 it cannot be done, 130 interrupted, 143 terminated.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mmjax.base import host
from mmjax.base.command import run_command
from mmjax.base.signals import defer_signals, interruptible
from mmjax.errors import InputError

DTYPES = ("float32", "bfloat16")
MEASURES = ("positions", "vocabulary")
MIN_TOKENS = 3  # as in mmjax.trajectory.samples, which is slow to import


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[:1].upper()}{message[1:]}. --help lists the flags.")


def trajectory(options: argparse.Namespace, command: Sequence[str]) -> None:
    """Runs a command line. Raises InputError if it cannot be done; nothing is written then."""
    folder = options.out or Path("runs", f"trajectory-{folder_name(options.weights)}")
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise InputError(f"--out is {folder}, and there is a file in its place.")
    # Here and below: what imports jax comes after all that can be wrong without it.
    from rich.console import Console
    from rich.progress import Progress

    with defer_signals():
        from mmjax.trajectory import analysis, output
    settings = analysis.AnalysisSettings(
        options.weights,
        options.text,
        options.measure,
        options.samples,
        options.length,
        options.dtype,
        options.tokenizer,
    )
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("opening", total=None)

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        record = analysis.analyse(settings, progress)
    record["command"] = shlex.join(["python", "-m", "mmjax.trajectory", *command])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}.") from None
    page = output.write(record, folder)
    print(*output.summarize(record), page, sep="\n")


def folder_name(weights: str) -> str:
    """fetched:smollm2 -> smollm2; hf:owner/name -> name; a/model.gguf -> model; a/folder -> folder."""
    path = Path(weights.partition(":")[2] if weights.startswith(("fetched:", "hf:")) else weights)
    return (path.stem if path.suffix == ".gguf" else path.name) or path.absolute().name


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        "python -m mmjax.trajectory", description=__doc__, formatter_class=form, allow_abbrev=False
    )
    add = parser.add_argument
    add("--weights", required=True, metavar="PATH", help="the model")
    add("--text", required=True, type=Path, metavar="FILE", help="the samples")
    add("--out", type=Path, metavar="DIR", help="where the result is written")
    measures = "of the paper, over positions; or of whole distributions"
    add("--measure", choices=MEASURES, default=MEASURES[0], help=measures)
    add("--samples", type=int, default=100, help="so many at most")
    add("--length", type=int, default=256, help="tokens of a sample at most")
    add("--dtype", choices=DTYPES, default=DTYPES[0], help="of the computation")
    add("--tokenizer", metavar="PATH", help="if it is not beside the weights")
    options = parser.parse_args(arguments)
    if options.samples < 1:
        raise InputError(f"--samples must be positive, not {options.samples}.")
    if options.length < MIN_TOKENS:
        raise InputError(f"--length must be {MIN_TOKENS} or more, not {options.length}.")
    if not options.text.is_file():
        raise InputError(f"There is no text {options.text}.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (without the program's name) and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    host.prepare()

    def command() -> None:
        with interruptible():
            trajectory(_parse(arguments), arguments)

    return run_command(command, when_stopped="nothing was written")


if __name__ == "__main__":
    sys.exit(main())
