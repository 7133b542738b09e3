"""What one run cost beside another, and what it saves: in wall-clock, in device time, in FLOPs.

    python -m mmjax.ledger WORKDIR --against=WORKDIR [--json=FILE]

Both runs must be finished. Exit codes: 0 done, 2 there is no such run, or it is not finished.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mmjax.base.command import run_command
from mmjax.errors import InputError
from mmjax.ledger.costs import as_json
from mmjax.ledger.reading import read
from mmjax.ledger.table import show


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Runs a command line (without the program's name) and returns its exit code."""
    options = _parse(arguments)

    def command() -> None:
        ours, baseline = read(options.workdir), read(options.against)
        show(ours, baseline, console or Console())
        if options.json:
            content = json.dumps(as_json(ours, baseline), indent=1) + "\n"
            try:
                options.json.write_text(content, encoding="utf-8")
            except OSError as error:
                raise InputError(f"{options.json} cannot be written: {error.strerror}.") from None

    return run_command(command)


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
