"""Writes the report of a run again: `python -m mmjax.report WORKDIR`."""

import os
import sys

from mmjax.errors import InputError


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, or 2 where the folder is no workdir."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    os.environ["JAX_PLATFORMS"] = "cpu"  # costs are counted from shapes; an accelerator may be busy with a run
    from mmjax import report

    try:
        print(report.write(arguments[0]))
    except InputError as error:
        print(f"mmjax: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
