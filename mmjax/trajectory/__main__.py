"""Where a decoder's prediction settles: what each of its layers already predicts, and where a surrogate of it could be cut.

    python -m mmjax.trajectory --weights=PATH --text=FILE [--out=DIR] [--measure=positions|vocabulary] [--samples=100] [--length=256]
        [--dtype=float32] [--tokenizer=PATH]

PATH is a folder of transformers, a GGUF file, a folder that mmjax wrote, or fetched:NAME for what `python -m mmjax.fetch NAME` has
brought; of a whole model, the decoder is read. FILE is UTF-8: samples are separated by blank lines, or, where its name ends in .jsonl, each
line is one, {"text": ...}. The first --samples of them that have three tokens are read, and of each the first --length tokens.

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
from mmjax.base.signals import SigtermInterrupt, defer_signals, interruptible
from mmjax.errors import InputError

DONE, WRONG_INPUT, INTERRUPTED, TERMINATED = 0, 2, 130, 143
DTYPES = ("float32", "bfloat16")
MEASURES = ("positions", "vocabulary")
SHORTEST = 3  # tokens, as in mmjax.trajectory.samples


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[:1].upper()}{message[1:]}. --help lists the flags.")


def trajectory(options: argparse.Namespace, command: Sequence[str]) -> None:
    """Runs a command line. Raises InputError if it cannot be done; nothing is written then."""
    from rich.console import (
        Console,  # here and below: what imports jax comes after all that can be wrong without it
    )
    from rich.progress import Progress

    with defer_signals():
        from mmjax.trajectory import analysis, output
    asked = analysis.AnalysisSettings(
        options.weights,
        options.text,
        options.measure,
        options.samples,
        options.length,
        options.dtype,
        options.tokenizer,
    )
    folder = options.out or Path("runs", f"trajectory-{_name(options.weights)}")
    _check_folder(folder)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("opening", total=None)
        record = analysis.analyse(
            asked,
            lambda what, done, total: progress.update(
                task, description=what, completed=done, total=total
            ),
        )
    record["command"] = shlex.join(["python", "-m", "mmjax.trajectory", *command])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}.") from None
    page = output.write(record, folder)
    print(*output.proposal(record), page, sep="\n")


def _name(weights: str) -> str:
    """fetched:smollm2 -> smollm2; a/model.gguf -> model; a/folder -> folder."""
    path = Path(weights.partition(":")[2] if weights.startswith("fetched:") else weights)
    return (path.stem if path.suffix == ".gguf" else path.name) or path.absolute().name


def _check_folder(folder: Path) -> None:
    """Before anything is computed."""
    if (
        next(
            (path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()),
            None,
        )
        is not None
    ):
        raise InputError(f"--out is {folder}, and there is a file in its place.")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        "python -m mmjax.trajectory", description=__doc__, formatter_class=form, allow_abbrev=False
    )
    parser.add_argument("--weights", required=True, metavar="PATH", help="the model")
    parser.add_argument("--text", required=True, type=Path, metavar="FILE", help="the samples")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the result is written")
    parser.add_argument(
        "--measure",
        choices=MEASURES,
        default=MEASURES[0],
        help="of the paper, over positions; or of whole distributions",
    )
    parser.add_argument("--samples", type=int, default=100, help="so many at most")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sample at most")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the computation")
    parser.add_argument("--tokenizer", metavar="PATH", help="if it is not beside the weights")
    options = parser.parse_args(arguments)
    if options.samples < 1:
        raise InputError(f"--samples is {options.samples}; it must be positive.")
    if options.length < SHORTEST:
        raise InputError(f"--length is {options.length}; it must be {SHORTEST} or more.")
    if not options.text.is_file():
        raise InputError(f"There is no text {options.text}.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (without the program's name) and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    host.prepare()
    try:
        with interruptible():
            trajectory(_parse(arguments), arguments)
    except InputError as error:
        return _end(str(error), WRONG_INPUT)
    except KeyboardInterrupt:
        return _end("Interrupted; nothing was written.", INTERRUPTED)
    except SigtermInterrupt:
        return _end("SigtermInterrupt; nothing was written.", TERMINATED)
    return DONE


def _end(message: str, code: int) -> int:
    print(f"mmjax: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
