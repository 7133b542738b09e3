"""What one run cost beside another, and what it saves: in wall-clock, in device time, in FLOPs.

    python -m mmjax.ledger WORKDIR --against=WORKDIR [--json=FILE]

Both runs must be finished. Exit codes: 0 done, 2 there is no such run, or it is not finished.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mmjax.errors import InputError
from mmjax.ledger.costs import as_json
from mmjax.ledger.reading import read
from mmjax.ledger.table import show
from mmjax.runs.workdir import write_json

DONE, WRONG_INPUT = 0, 2


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Runs a command line (without the program's name) and returns its exit code."""
    options = _parse(arguments)
    try:
        ours, baseline = read(options.workdir), read(options.against)
        show(ours, baseline, console or Console())
        if options.json:
            _write(options.json, as_json(ours, baseline))
    except InputError as error:
        print(f"mmjax: {error}", file=sys.stderr)
        return WRONG_INPUT
    return DONE


def _write(path: Path, content: object) -> None:
    try:
        write_json(path, content)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from None


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m mmjax.ledger",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdir", metavar="WORKDIR", type=Path, help="of the run")
    parser.add_argument(
        "--against", metavar="WORKDIR", type=Path, required=True, help="of the baseline"
    )
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="where the same numbers are written as JSON"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
