"""Puts an encoder that was trained on a surrogate before the whole language model, without training anything.

    python -m mmjax.graft --encoder=WORKDIR --decoder=FOLDER --out=FOLDER

--encoder  a run with a surrogate (configs/graft.py), or one of its checkpoints: WORKDIR/checkpoints/STAGE/STEP. Its encoder and connector
           are taken; of its decoder only embeddings and query matrices are read, which must be those of the whole one
--decoder  the model that the surrogate was cut from: a folder of transformers, whose files are copied as they are; a GGUF file or a folder
           of Orbax, which are ported (python -m mmjax.port); fetched:NAME; or hf:OWNER/NAME
--out      a folder that does not exist yet, or is empty. `vision`, `connector` and `decoder` in it are what
           mmjax.weights.load_pretrained and python -m mmjax.chat read, and manifest.json says where every parameter came from

Exit codes: 0 done, 2 it cannot be done, 130 interrupted, 143 terminated; then nothing is written.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mmjax.base import host
from mmjax.base.command import run_command
from mmjax.base.files import check_free
from mmjax.base.signals import defer_signals, interruptible


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (without the program's name) and returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m mmjax.graft",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = "a run with a surrogate, of whose last stage on one the newest checkpoint is taken; or a checkpoint"
    parser.add_argument("--encoder", metavar="WORKDIR", type=Path, required=True, help=which)
    parser.add_argument(
        "--decoder",
        metavar="FOLDER",
        required=True,
        help="the model that the surrogate was cut from",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        required=True,
        help="the folder that is made, or an empty one",
    )
    options = parser.parse_args(arguments)
    host.prepare()

    def command() -> None:
        check_free(options.out)  # before jax is imported
        with interruptible():
            with defer_signals():
                from mmjax.graft import graft
            graft.graft(options.encoder, options.decoder, options.out, Console())

    return run_command(command, when_stopped="nothing half-made was left")


if __name__ == "__main__":
    sys.exit(main())
