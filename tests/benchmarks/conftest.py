"""The scripts of benchmarks/ import each other by their bare names, as they do when one of them is run."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
