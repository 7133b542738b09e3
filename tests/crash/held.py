"""A config file: tests/squares.py in a process that says where it is, at the moment that $HELD_AT names, and waits there for a signal.

config      while the config file is read           claim       before config.json is written
planning    while a source is measured              data        while images of later rows are read, in threads
image       where the image of the name $HELD_IMAGE is read
scoring     before the last stage is scored         exit        when everything is done, as the interpreter ends
loading     before a checkpoint is read, in evaluate and generate
stuck       as "planning", but the exception of the signal is lost there
full        after planning, no file may grow: the disk is full; "full for a while": until the first save has failed
"""

import atexit
import os
import resource
import threading
import time

from ml_collections import ConfigDict

from tests import squares

VARIABLE = "HELD_AT"
PATIENCE = 120.0


def hold(*_: object, **__: object) -> None:
    """Says where the process is and waits."""
    print(f"at {os.environ[VARIABLE]}", flush=True)
    time.sleep(PATIENCE)


def hold_and_lose(*_: object, **__: object) -> None:
    """As `hold`, but what is raised meanwhile is lost once."""
    try:
        hold()
    except KeyboardInterrupt:
        print("lost", flush=True)
        time.sleep(PATIENCE)


def hold_later_images() -> None:
    """Threads that read rows stop after some images."""
    from mmjax.data.images.decode import ImageCache

    load, seen = ImageCache.load, []

    def loading(*arguments, **options):
        if threading.current_thread() is not threading.main_thread():
            seen.append(None)
            if len(seen) > 4:
                hold()
        return load(*arguments, **options)

    ImageCache.load = loading


def hold_image(name: str) -> None:
    """What reads this image stops."""
    from mmjax.data.images.decode import ImageCache

    load = ImageCache.load

    def loading(self, source, *arguments, **options):
        if os.path.basename(source) == name:
            hold()
        return load(self, source, *arguments, **options)

    ImageCache.load = loading


def fill_disk(*, for_ever: bool) -> None:
    """From the first save on, or during it, files cannot grow."""
    from mmjax.training.checkpoint import Checkpoints

    save, fail = Checkpoints.save, Checkpoints._fail
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def saving(*arguments, **options):
        if for_ever or not failed:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        return save(*arguments, **options)

    def failing(*arguments):
        failed.append(None)
        if not for_ever:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        fail(*arguments)

    failed: list[None] = []
    Checkpoints.save, Checkpoints._fail = saving, failing


def get_config() -> ConfigDict:
    """Of the squares."""
    from mmjax.data.packing import packing
    from mmjax.runs import answer, run, score, workdir

    match os.environ.get(VARIABLE):
        case "config":
            hold()
        case "claim":
            workdir.write_json = hold
        case "planning":
            packing._units = hold
        case "stuck":
            packing._units = hold_and_lose
        case "data":
            hold_later_images()
        case "image":
            hold_image(os.environ["HELD_IMAGE"])
        case "scoring":
            run.score_end = hold
        case "loading":
            score.read_params = answer.read_params = hold
        case "exit":
            atexit.register(hold)
        case "full":
            fill_disk(for_ever=True)
        case "full for a while":
            fill_disk(for_ever=False)
    return squares.get_config()
