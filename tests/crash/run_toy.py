"""Trains the toy stage as a process of its own: `run_toy.py DATA WORKDIR [PAUSE]`. Ends with main's exit codes.

With PAUSE, the process says "at PAUSE" when it gets there, and waits for the signal that the test then sends; for a kill it waits for ever.

    compile     as the first step begins to compile        step        while the rows of step 5 are read
    evaluation  in the held-out rows after step 3           save        in the background write of the checkpoint of step 4
    write       the same, but training goes on meanwhile    publish     before the finished checkpoint of step 4 gets its name
"""

import os
import pathlib
import sys
import threading
import time

from mmjax.base import host

host.prepare()

from mmjax.base.command import run_command  # noqa: E402 - jax may start only now
from mmjax.base.signals import StopSignal  # noqa: E402
from mmjax.training import loop as training_loop  # noqa: E402
from mmjax.training.checkpoint import Record  # noqa: E402
from tests.training import toy  # noqa: E402

PATIENCE = 120.0


class Pause:
    """Says where the process is, once, and waits there."""

    def __init__(self, where: str, stop: StopSignal):
        self.where, self.stop, self.said = where, stop, False

    def at(self, where: str, until=None) -> None:
        """Waits at `where`, if that is where to wait, until the stop is requested (or `until` says so)."""
        if where != self.where or self.said:
            return
        self.said = True
        print(f"at {where}", flush=True)
        end = time.monotonic() + PATIENCE
        while not (until or (lambda: self.stop.requested))():
            assert time.monotonic() < end, "no signal came"
            time.sleep(0.005)


def never() -> bool:
    """What a process waits for that is to be killed."""
    return False


def pause_rows(pause: Pause):
    """Rows that wait while they are read."""

    def edit(rows, held_out):
        for part, where, first in ((rows, "step", 8), (held_out, "evaluation", 0)):
            part.load = pausing(part.load, where, first)
        return rows, held_out

    def pausing(load, where, first):
        def loading(index):
            if index >= first:
                pause.at(where)
            return load(index)

        return loading

    return edit


def pause_compiling(pause: Pause) -> None:
    make = training_loop.make_train_step

    def pausing(*arguments, **options):
        step = make(*arguments, **options)

        def stepping(*arguments):
            pause.at("compile")
            return step(*arguments)

        return stepping

    training_loop.make_train_step = pausing


def pause_saving(pause: Pause) -> None:
    write, rename = Record._write, os.rename

    async def writing(self, directory, host):
        if self.metadata["position"]["step"] == 4:
            pause.at("save")
            await directory.await_creation()  # a save begins with its folder
            pause.at("write", until=never)
        await write(self, directory, host)

    def renaming(source, target, *arguments, **options):
        if (
            pathlib.Path(target).name == "4"
            and threading.current_thread() is not threading.main_thread()
        ):
            pause.at("publish", until=never)
        rename(source, target, *arguments, **options)

    Record._write, os.rename = writing, renaming


def run(data: str, workdir: str, where: str = "") -> int:
    """Trains, as main does. Returns the exit code."""

    def command() -> None:
        with StopSignal() as stop:
            pause = Pause(where, stop)
            pause_compiling(pause)
            pause_saving(pause)
            result = toy.train(
                toy.small_recipe(pathlib.Path(data)),
                pathlib.Path(workdir),
                stop=stop,
                edit_rows=pause_rows(pause),
            )
            assert result.finished

    return run_command(command)


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
