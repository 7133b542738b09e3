"""Writes the report of a run again: `python -m mmjax.report WORKDIR [--against=WORKDIR]`, with what it saves against another run."""

import argparse
import os
import sys

from mmjax.base.command import run_command


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, or 2 where a folder is no workdir, or that of --against holds no finished run."""
    parser = argparse.ArgumentParser("python -m mmjax.report", description=__doc__)
    parser.add_argument("workdir", metavar="WORKDIR", help="of the run")
    parser.add_argument(
        "--against",
        metavar="WORKDIR",
        help="of a finished run, beside which the ledger shows what this one saves",
    )
    options = parser.parse_args(arguments)
    os.environ["JAX_PLATFORMS"] = (
        "cpu"  # costs are counted from shapes; an accelerator may be busy with a run
    )
    from mmjax import report

    return run_command(lambda: print(report.write(options.workdir, options.against)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
